"""The modules whose examples can't run here: their library is absent, or they only import for a harness."""

from importlib.util import find_spec

_NEEDED = {
    "embstore/torch.py": "torch",
    "embstore/_outputs/collate.py": "torch",
    "integrations/embstore_fl/*": "torch",
    "embstore/sklearn.py": "sklearn",
    "integrations/embstore_tools/langchain.py": "langchain_core",
    "integrations/embstore_tools/llama_index.py": "llama_index",
    "integrations/embstore_tools/mteb.py": "mteb",
    "integrations/embstore_tools/sentence_transformers.py": "sentence_transformers",
}

collect_ignore_glob = [path for path, library in _NEEDED.items() if find_spec(library) is None]
collect_ignore_glob += ["tests/fl/fedgfe_imports.py"]
