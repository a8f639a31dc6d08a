"""Engines from prompt to video: loaded by name, and put inside diffusers' own pipeline."""
