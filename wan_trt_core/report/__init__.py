"""Reports, made from a :class:`~wan_trt_core.records.RunRecord` and nothing else."""
