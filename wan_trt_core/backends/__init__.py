"""Backends: each module or folder here is one, named as in case files (``torch_compile`` is ``torch-compile``).

A backend module defines ``BACKEND``, an instance of a :class:`~wan_trt_core.backends.base.Backend` subclass;
nothing else has to be registered. Importing this package imports none of them.
"""
