"""Runs in a kernel: writes what python-data's libraries, and Python itself, are set to, as JSON."""

import json
import locale
import logging
import os
import shutil
import signal
import sys
import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import requests
import seaborn as sns
import sklearn
import tqdm.auto

LOCALES = ("LC_CTYPE", "LC_NUMERIC", "LC_TIME")
VARIABLES = ("TERM", "PAGER", "CLICOLOR", "FORCE_COLOR", "MPLBACKEND")


def options_of_libraries() -> dict[str, str]:
    # matplotlib sets what belongs to its backend with the first figure.
    plt.close(plt.figure())
    found: dict[str, object] = {
        "numpy errors": np.geterr(),
        "matplotlib backend": mpl.get_backend(),
        "matplotlib is interactive": mpl.is_interactive(),
        "pyarrow": (pa.cpu_count(), pa.io_thread_count(), pa.default_memory_pool().backend_name),
        "pillow": PIL.Image.MAX_IMAGE_PIXELS,
        "requests": requests.utils.default_user_agent(),
        "seaborn": sns.axes_style(),
        "tqdm": tqdm.auto.tqdm.__mro__[1].__module__,
        "locale": [locale.setlocale(getattr(locale, name)) for name in LOCALES],
        "encodings": (sys.stdout.encoding, sys.stderr.encoding, sys.getfilesystemencoding()),
        "terminal": (shutil.get_terminal_size(), sys.stdout.isatty()),
        "signals": [str(signal.getsignal(number)).split(" at ")[0] for number in (signal.SIGINT, signal.SIGTERM)],
        "root logger": (logging.getLogger().level, logging.getLogger().handlers),
        "variables": [os.environ.get(name) for name in VARIABLES],
        "recursion": sys.getrecursionlimit(),
        "warnings": sorted(str(one) for one in warnings.filters if "To exit" not in str(one)),
        "table": str(pd.DataFrame({f"m{number:02d}": [number] for number in range(30)})),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found |= {f"pandas {name}": pd.get_option(name) for name in pd._config.config._registered_options}
    found |= {f"numpy {name}": value for name, value in np.get_printoptions().items()}
    found |= {f"sklearn {name}": value for name, value in sklearn.get_config().items()}
    found |= {f"matplotlib {name}": value for name, value in mpl.rcParams.items()}
    return {name: repr(value) for name, value in found.items()}


sys.stdout.write(json.dumps(options_of_libraries()))
