"""Parameters and FLOPs in closed form, from a LitGPT config alone.

There are two counts of FLOPs, and they are never mixed: each figure, column and field names the one it is.

    matmul      what the device multiplies in a step: for its utilization (MFU), and to compare with measurements
    hoffmann    appendix F of arXiv 2203.15556, with the embedding as a product and the softmax: the compute axes of
                arXiv 2411.07340's figures; 1.5 (70M) to 1.8 times (5M) the matmul count at Table 1's scales
"""

from litgpt.config import Config

from litgpt_warmstart.method.scales import Sizes


def matmul_parameters(config: Config) -> int:
    """Weights that a token is multiplied with: all matrices but the embedding, whose lookup costs nothing."""
    sizes = Sizes.of(config)
    attention_rows = (sizes.n_head + 2 * sizes.n_query_groups) * sizes.head_size
    attention = sizes.n_embd * attention_rows + sizes.n_head * sizes.head_size * sizes.n_embd
    matrices = 2 if config.mlp_class_name == "GptNeoxMLP" else 3
    mlp = matrices * sizes.n_embd * sizes.intermediate_size
    return config.n_layer * (attention + mlp) + sizes.n_embd * sizes.padded_vocab_size


def matmul_flops_per_token(config: Config, block_size: int) -> int:
    """Matmul FLOPs of forward and backward per trained token, as ``lightning``'s ``measure_flops`` counts them.

    Six per matmul weight, and for the two attention products (scores, values) six per pair of positions and channel.
    The causal half of the scores is counted too, as the measurement does. For the utilization of a device; the compute
    axis of a figure takes :func:`hoffmann_flops_per_token`.
    """
    attention = 2 * config.n_layer * block_size * config.n_head * Sizes.of(config).head_size
    return 6 * (matmul_parameters(config) + attention)


def hoffmann_flops_per_token(config: Config, block_size: int) -> int:
    """FLOPs of forward and backward per trained token by appendix F of arXiv 2203.15556, for compute axes.

    Its terms for a sequence, divided by the sequence's length: the embedding as a product with one-hot vectors, in each
    layer the projections, scores, softmax (three per score), values and the MLP, and the logits. Backward counts twice
    forward. Query groups and gated MLPs, which the appendix does not have, count by their own matrices. Not for the
    utilization of a device, which looks the embedding up: that takes :func:`matmul_flops_per_token`.
    """
    embedding = 2 * Sizes.of(config).padded_vocab_size * config.n_embd
    softmax = 3 * config.n_layer * config.n_head * block_size
    return matmul_flops_per_token(config, block_size) + 3 * (embedding + softmax)
