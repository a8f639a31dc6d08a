"""Reports, made from what a run recorded (:mod:`wan_trt_core.records`) or planned (:mod:`wan_trt_core.memory`)."""
