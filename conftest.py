"""Which modules' examples can run here: those of embstore.torch and embstore_fl need torch, others their library."""

from importlib.util import find_spec

collect_ignore_glob = (
    [] if find_spec("torch") else ["embstore/torch.py", "embstore/_outputs/collate.py", "integrations/embstore_fl/*"]
)
collect_ignore_glob += [] if find_spec("sklearn") else ["embstore/sklearn.py"]
collect_ignore_glob += ["tests/fl/fedgfe_imports.py"]  # imports heavy libraries for a harness, and has no examples
