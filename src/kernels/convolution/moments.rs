//! Mean and variance of many numbers, some at a time.

/// Count, mean and sum of squared distances from the mean of some numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// These numbers and those of `plane`, rows of `width` numbers that `value` reads: one row after the other, so that some rows
    /// now and some later give the same bits as all at once.
    #[must_use]
    pub fn with_rows<T>(self, plane: &[T], width: usize, value: impl Fn(&T) -> f32 + Copy) -> Moments {
        plane.chunks(width.max(1)).fold(self, |all, row| all.with(Moments::of(row, value)))
    }

    /// The mean, and one over the root of the variance and `eps`, in single precision.
    pub fn mean_and_scale(&self, eps: f32) -> (f32, f32) {
        let variance = (self.squares / self.count.max(1.0)) as f32;
        (self.mean as f32, (variance + eps).sqrt().recip())
    }

    /// Of `numbers`: the mean first and then the distances, so that large means cost no digits.
    fn of<T>(numbers: &[T], value: impl Fn(&T) -> f32) -> Moments {
        let count = numbers.len() as f64;
        let mean = sum(numbers, |number| f64::from(value(number))) / count.max(1.0);
        let squares = sum(numbers, |number| (f64::from(value(number)) - mean).powi(2));
        Moments { count, mean, squares }
    }

    /// Of these numbers and those of `other` together: Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance"
    /// (1983).
    #[must_use]
    pub fn with(self, other: Moments) -> Moments {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let (delta, share) = (other.mean - self.mean, other.count / count);
        Moments {
            count,
            mean: self.mean + delta * share,
            squares: self.squares + other.squares + delta * delta * self.count * share,
        }
    }
}

/// The sum of `value` over `numbers`, in eight parts that the processor adds up at once.
fn sum<T>(numbers: &[T], value: impl Fn(&T) -> f64) -> f64 {
    let (eights, rest) = numbers.as_chunks::<8>();
    let mut parts = [0.0; 8];
    for eight in eights {
        parts.iter_mut().zip(eight).for_each(|(part, number)| *part += value(number));
    }
    parts.iter().sum::<f64>() + rest.iter().map(value).sum::<f64>()
}
