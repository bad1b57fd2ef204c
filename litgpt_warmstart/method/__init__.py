"""The paper and nothing else: no files, no Fabric, no command line."""
