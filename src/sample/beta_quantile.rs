//! Quantiles of the symmetric beta distribution that [`Schedule::Beta`](super::Schedule::Beta) takes.

/// Both parameters of the distribution: diffusers' numbers.
const SHAPE: f64 = 0.6;

/// `ln B(SHAPE, SHAPE)`, from `2 ln Gamma(0.6) - ln Gamma(1.2)`.
const LN_BETA: f64 = 0.8818418061417859;

/// Terms of the continued fraction; some twenty are enough.
const MOST_TERMS: usize = 200;

/// Halvings of an interval until nothing is left between two neighbouring numbers.
const MOST_HALVINGS: usize = 1100;

/// The number below which a share `p` of the distribution lies: `scipy.stats.beta.ppf(p, 0.6, 0.6)`.
pub(super) fn beta_quantile(p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - lower_quantile(1.0 - p);
    }
    lower_quantile(p)
}

/// By halving: [`share_below`] grows everywhere.
fn lower_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..MOST_HALVINGS {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if share_below(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    high * f64::from(u8::from(p > 0.0))
}

/// The regularized incomplete beta function, by the continued fraction of the DLMF, 8.17.22, which converges fast in the
/// lower half.
fn share_below(x: f64) -> f64 {
    if x > 0.5 {
        return 1.0 - share_below(1.0 - x);
    }
    let front = (SHAPE * (x.ln() + (-x).ln_1p()) - LN_BETA).exp() / SHAPE;
    // From the last term to the first.
    let mut fraction = 1.0;
    for n in (1..=MOST_TERMS).rev() {
        fraction = 1.0 + term(n, x) / fraction;
    }
    front / fraction
}

/// Coefficient `n` of the continued fraction, DLMF 8.17.23.
fn term(n: usize, x: f64) -> f64 {
    let m = (n / 2) as f64;
    let twice = SHAPE + 2.0 * m;
    if n.is_multiple_of(2) {
        m * (SHAPE - m) * x / ((twice - 1.0) * twice)
    } else {
        -(SHAPE + m) * (2.0 * SHAPE + m) * x / (twice * (twice + 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.beta.ppf` of SciPy 1.17.
    #[test]
    fn quantiles_are_those_of_scipy() {
        for (p, wanted) in [
            (0.0, 0.0),
            (1e-06, 1.8558824624053043e-10),
            (0.001, 1.855873851745199e-05),
            (0.05, 0.012554456873611399),
            (0.25, 0.17568037865269498),
            (0.3333333333333333, 0.2754132907776234),
            (0.5, 0.5000000000000001),
            (0.7, 0.7659829961247643),
            (0.95, 0.9874455431263885),
            (0.999, 0.9999814412614826),
            (1.0, 1.0),
        ] {
            let found = beta_quantile(p);
            assert!((found - wanted).abs() <= 1e-14 * wanted.max(1e-3), "{p}: {found:e} for {wanted:e}");
        }
    }
}
