//! What pinhole uses of ggml, and has tested: operation by number format.
//!
//! `supports_op` answers yes too often (ggml's CPU backend aborts on a BF16 bias or a BF16 convolution kernel that it
//! claims to support), so graphs are checked against this table before ggml is asked.

use pinhole_quant::DType;

use super::Device;
use crate::kernels::Kernel;

/// Whether a matrix of `dtype` may stand on the left of [`mul_mat`](super::Graph::mul_mat).
pub fn matrix(dtype: DType) -> bool {
    use DType::*;
    matches!(
        dtype,
        F32 | F16
            | BF16
            | Q8_0
            | Q4_0
            | Q4_1
            | Q5_0
            | Q5_1
            | Q2_K
            | Q3_K
            | Q4_K
            | Q5_K
            | Q6_K
            | IQ4_NL
            | IQ4_XS
            | IQ2_XXS
            | IQ2_XS
            | IQ2_S
            | IQ3_XXS
            | IQ3_S
            | IQ1_S
            | IQ1_M
            | TQ1_0
            | TQ2_0
            | MXFP4
    )
}

/// Whether pinhole's own convolutions run on `device`, and take kernels of `dtype` as they are: they compute in F32.
pub fn convolves(device: Device, dtype: DType) -> bool {
    device.runs_own_operations() && Kernel::best().is_some() && matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Whether a convolution kernel of ggml's may have `dtype`. F16 kernels round the activations to F16 as well.
pub fn kernel(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16)
}
