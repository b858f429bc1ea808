"""The one thing that pyproject.toml cannot say: kernels/__init__.py stays out of what gets installed.

Hugging Face's package `kernels` installs a folder of the same name with an __init__.py that matters, where ours is
empty. Without ours, neither installation overwrites the other's file, nor removes it with `pip uninstall`: beside
Hugging Face's package our subpackages are part of it, and alone they make up a namespace package.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [found for found in modules if found[:2] != ("kernels", "__init__")]


setup(cmdclass={"build_py": BuildPy})
