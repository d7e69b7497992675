"""`pytest -p more_tunings`: the files in the folder that MORE_TUNINGS names are tunings too, in every test."""

import os

import task.tunings

task.tunings.__path__ = [*task.tunings.__path__, os.environ["MORE_TUNINGS"]]
