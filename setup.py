"""The one C file, compiled where there is a compiler. Everything else about the package stands in pyproject.toml, in which
extensions are still an experiment of setuptools."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("minitrainer.trace._native", ["minitrainer/trace/_native.c"], optional=True)])
