"""0.7's `fastai.metrics`: minifast's own."""

from ..metrics import accuracy as accuracy
from ..metrics import accuracy_multi as accuracy_multi
from ..metrics import accuracy_multi_np as accuracy_multi_np
from ..metrics import accuracy_np as accuracy_np
from ..metrics import accuracy_thresh as accuracy_thresh
from ..metrics import f1 as f1
from ..metrics import f1_np as f1_np
from ..metrics import fbeta as fbeta
from ..metrics import fbeta_np as fbeta_np
from ..metrics import precision as precision
from ..metrics import precision_np as precision_np
from ..metrics import recall as recall
from ..metrics import recall_np as recall_np

__all__ = [
    "accuracy",
    "accuracy_multi",
    "accuracy_multi_np",
    "accuracy_np",
    "accuracy_thresh",
    "f1",
    "f1_np",
    "fbeta",
    "fbeta_np",
    "precision",
    "precision_np",
    "recall",
    "recall_np",
]
