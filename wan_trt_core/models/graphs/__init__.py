"""Export-friendly graphs: modules that compute what diffusers' own do, in the form that engines run fastest.

They import torch, so component files import them only when a graph is asked for.
"""
