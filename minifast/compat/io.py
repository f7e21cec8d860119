"""0.7's `fastai.io`."""

import gzip as gzip
from urllib.request import urlretrieve as urlretrieve

from ..io import get_data as get_data

__all__ = ["get_data", "gzip", "urlretrieve"]
