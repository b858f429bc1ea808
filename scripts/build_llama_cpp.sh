#!/bin/sh
# Build llama.cpp's library with a BLAS: on a CPU the only llama.cpp that does not round activations to 8 bits.
#
#   sh scripts/build_llama_cpp.sh DIRECTORY
#   RUNNER_LLAMA_CPP=DIRECTORY/build/bin/libllama.so pytest tests/runner/llama_cpp
#
# Sources are the llama.cpp inside PyPI's llama-cpp-python and scipy-openblas32. With GGML_BLAS, products of 32 and more
# columns go through float32 sgemm, quantised weights dequantised first. GGML_CPU_REPACK is off because repacked weights
# would keep to the path that rounds. Needs a C++ compiler, cmake and ninja; two minutes on two cores.
set -eu
[ $# = 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
VERSION=0.3.36
PYTHON=${PYTHON:-python3}
mkdir -p "$1"
cd "$1"
[ -d source ] || {
    "$PYTHON" -m pip download --quiet --no-deps --no-binary llama-cpp-python "llama-cpp-python==$VERSION"
    mkdir -p unpacked
    tar -xzf "llama_cpp_python-$VERSION.tar.gz" -C unpacked --strip-components=1
    mv unpacked/vendor/llama.cpp source
}
"$PYTHON" -m pip install --quiet --no-deps --upgrade --target openblas scipy-openblas32
BLAS=$PWD/openblas/scipy_openblas32
# That OpenBLAS prefixes its names, so that it can live beside another one.
NAMES="-Dcblas_sgemm=scipy_cblas_sgemm -Dcblas_strsm=scipy_cblas_strsm -Dopenblas_set_num_threads=scipy_openblas_set_num_threads"
cmake -G Ninja -S source -B build -Wno-dev -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS="$NAMES" \
    -DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS -DGGML_CPU_REPACK=OFF \
    -DBLAS_LIBRARIES="$BLAS/lib/libscipy_openblas.so" -DBLAS_INCLUDE_DIRS="$BLAS/include" \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF >cmake.log 2>&1 || { cat cmake.log >&2; exit 1; }
ninja -C build llama >ninja.log 2>&1 || { tail -30 ninja.log >&2; exit 1; }
echo "$PWD/build/bin/libllama.so"
