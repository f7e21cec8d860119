"""The lesson's first star import: numpy, pyplot and the standard library under their usual names.

The package itself never imports this module.
"""

import gzip
import json
import math
import os
import pickle
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

__all__ = ["Path", "gzip", "json", "math", "np", "os", "pickle", "plt", "re", "sys"]
