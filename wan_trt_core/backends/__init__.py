"""Backends: each module or folder here is one, named as in case files (with ``-`` for ``_``).

A backend module defines ``BACKEND``, an instance of a :class:`~wan_trt_core.backends.base.Backend` subclass;
nothing else has to be registered. Other installed packages bring more, see :mod:`wan_trt_core.models.installed`.
Importing this package imports none of them.
"""
