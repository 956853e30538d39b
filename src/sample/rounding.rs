//! Functions of single precision, in double precision and rounded once: what PyTorch gives, except its last digit.

/// `torch.log`.
pub(super) fn log(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// `torch.exp`.
pub(super) fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// `torch.expm1`.
pub(super) fn exp_m1(x: f32) -> f32 {
    f64::from(x).exp_m1() as f32
}
