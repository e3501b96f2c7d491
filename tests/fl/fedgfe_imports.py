"""What the processes of `tests.fl.test_a2v_fedgfe` have imported when they are forked."""

import sklearn.model_selection  # noqa: F401
import torch  # noqa: F401
import transformers

for name in ("ASTModel", "ASTFeatureExtractor", "ViTModel", "pipeline"):
    getattr(transformers, name)
