"""Parameters, tokens and FLOPs in closed form, from a LitGPT config alone."""

from litgpt.config import Config


def matmul_parameters(config: Config) -> int:
    """Weights that a token is multiplied with: all matrices but the embedding, whose lookup costs nothing."""
    attention_rows = (config.n_head + 2 * config.n_query_groups) * config.head_size
    attention = config.n_embd * attention_rows + config.n_head * config.head_size * config.n_embd
    matrices = 2 if config.mlp_class_name == "GptNeoxMLP" else 3
    mlp = matrices * config.n_embd * config.intermediate_size
    return config.n_layer * (attention + mlp) + config.n_embd * config.padded_vocab_size


def matmul_flops_per_token(config: Config, block_size: int) -> int:
    """Matmul FLOPs of forward and backward per trained token, as ``lightning``'s ``measure_flops`` counts them.

    Six per matmul weight, and for the two attention products (scores, values) six per pair of positions and channel.
    The causal half of the scores is counted too, as the measurement does.

    Args:
        config: The model.
        block_size: Tokens per sequence in training.
    """
    attention = 2 * config.n_layer * block_size * config.n_head * config.head_size
    return 6 * (matmul_parameters(config) + attention)
