from cosmos3_xpu_rehearsal.operators import register_library

register_library("_xpu_C")
