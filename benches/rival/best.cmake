# What makes stable-diffusion.cpp's ggml fastest on the CPU of the machine that builds it. Forced into CMake's cache, since
# ggml's own default is off for the fast matrix products when it is built inside another project.
set(GGML_NATIVE ON CACHE BOOL "instructions of this machine" FORCE)
set(GGML_LLAMAFILE ON CACHE BOOL "the fast matrix products" FORCE)
set(GGML_CPU_REPACK ON CACHE BOOL "weights laid out anew while loading" FORCE)
