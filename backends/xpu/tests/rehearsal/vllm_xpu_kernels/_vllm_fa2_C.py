from cosmos3_xpu_rehearsal.operators import register_library

register_library("_vllm_fa2_C")
