# Runs once, before the snapshot, in the process that every kernel is forked from. What it imports is warm in
# each session; what it names is not there. Random numbers are renewed on each restore.
import io
import shutil

import jedi
import jinja2
import lxml.etree
import matplotlib

matplotlib.use("module://matplotlib_inline.backend_inline")

import matplotlib.pyplot as plt
import numpy as np
import openpyxl
import pandas as pd
import PIL.Image
import pyarrow
import pyarrow.parquet
import requests
import scipy.optimize
import scipy.stats
import seaborn
import sklearn.cluster
import sklearn.ensemble
import sklearn.linear_model
import sklearn.model_selection
import sklearn.preprocessing
import tabulate

frame = pd.read_csv(io.StringIO("day,region,amount\n2024-01-01,north,1.5\n2024-01-02,south,2.5\n"), parse_dates=["day"])
frame.groupby("region")["amount"].agg(["sum", "mean"])
frame.describe().to_html()
frame.pivot_table(index="day", columns="region", values="amount", aggfunc="sum").to_string()
figure, axes = plt.subplots()
frame.plot(x="day", y="amount", ax=axes, title="warm")
figure.savefig(io.BytesIO(), format="png", bbox_inches="tight")
plt.close("all")
sklearn.linear_model.LinearRegression().fit(np.array([[0.0], [1.0]]), np.array([0.0, 1.0]))
# The first Tab would wait for all that jedi parses then. It stays in memory; the copy on disk nobody needs.
jedi.Interpreter("import os\nos.pa", [{}]).complete()
shutil.rmtree(jedi.settings.cache_directory)
