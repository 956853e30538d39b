//! Rows of numbers to and from every format, checked.
//!
//! ggml does the work for everything in blocks, so that files have exactly the bytes that its own tools write, on every
//! machine. Rows are contiguous, lengths are in numbers, and bytes may lie at any address.

use crate::{DType, ffi, workers};

/// Numbers that one task of the parallel functions converts, about. A multiple of every block.
const TASK: usize = 1 << 16;

/// Why rows could not be converted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// Rows that blocks do not divide.
    #[error("rows of {row_len} numbers do not fit {dtype}, whose blocks have {}", dtype.block_size())]
    RowLength {
        /// The format.
        dtype: DType,
        /// Numbers in a row.
        row_len: usize,
    },
    /// A buffer that is too long or too short.
    #[error("{numbers} numbers in {dtype} take {expected} bytes, found {found}")]
    Bytes {
        /// The format.
        dtype: DType,
        /// How many numbers.
        numbers: usize,
        /// Bytes that they take.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// A number count that is no whole number of rows.
    #[error("{numbers} numbers are not whole rows of {row_len}")]
    PartialRow {
        /// How many numbers.
        numbers: usize,
        /// Numbers in a row.
        row_len: usize,
    },
    /// A format in which ggml only holds activations within a product.
    #[error("{0} is no format to read weights from")]
    Unreadable(DType),
    /// A format that ggml does not write.
    #[error("{0} is no format to write weights in")]
    Unwritable(DType),
    /// A format that ggml writes with an importance matrix only.
    #[error("{0} needs an importance matrix, which is not supported")]
    NeedsImportance(DType),
    /// Finite numbers whose block has a scale that is none: in the format, they would become NaN, infinity or something else.
    #[error("number {at}, {number:e}, is too large for {dtype}, whose blocks have a scale of their own format")]
    TooLarge {
        /// The format.
        dtype: DType,
        /// The largest number of the first such block, counted from the first that was given.
        at: usize,
        /// The number.
        number: f32,
    },
    /// ggml gave up, as it may on numbers that are not finite.
    #[error("cannot convert {dtype}: {message}")]
    Ggml {
        /// The format.
        dtype: DType,
        /// What ggml said.
        message: String,
    },
}

/// Whether [`dequantize`] reads `dtype`.
pub fn can_dequantize(dtype: DType) -> bool {
    number_bytes(dtype).is_some() || ffi::can_dequantize(dtype)
}

/// Whether [`quantize`] writes `dtype`.
pub fn can_quantize(dtype: DType) -> bool {
    check_writable(dtype).is_ok()
}

/// Reads `out.len()` numbers of `dtype` from `bytes` as f32. Integers and f64 are rounded to the nearest f32.
///
/// # Errors
///
/// [`RowError::RowLength`] and [`RowError::Bytes`] where `bytes` is not exactly that many numbers,
/// [`RowError::Unreadable`] for q8_1 and q8_k.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), RowError> {
    check_bytes(dtype, out.len(), bytes.len())?;
    if widen_numbers(dtype, bytes, out) {
        return Ok(());
    }
    let done = ffi::dequantize(dtype, bytes, out).ok_or(RowError::Unreadable(dtype))?;
    done.map_err(|caught| RowError::Ggml { dtype, message: caught.message })
}

/// [`dequantize`] on the threads of the [current](workers::Workers::current) workers, with the same result.
///
/// # Errors
///
/// Those of [`dequantize`].
pub fn dequantize_parallel(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), RowError> {
    check_bytes(dtype, out.len(), bytes.len())?;
    let task_bytes = TASK / dtype.block_size() * dtype.block_bytes();
    let tasks = bytes.chunks(task_bytes).zip(out.chunks_mut(TASK)).collect();
    workers::try_for_each(tasks, |(bytes, out)| dequantize(dtype, bytes, out))
}

/// Writes `rows`, which are rows of `row_len` numbers, in `dtype` to `out`, with no importance matrix.
///
/// Numbers that are not finite give some bytes or an error; see [`first_non_finite`]. Of formats without blocks, those that are
/// too large become infinite.
///
/// # Errors
///
/// [`RowError::TooLarge`] where the scale of a block overflows, [`RowError::RowLength`] where blocks do not divide a row, [`RowError::PartialRow`] and [`RowError::Bytes`] where `rows`
/// or `out` have another length, [`RowError::Unwritable`] or [`RowError::NeedsImportance`] for formats that are not
/// written.
pub fn quantize(dtype: DType, rows: &[f32], row_len: usize, out: &mut [u8]) -> Result<(), RowError> {
    check_quantize(dtype, rows.len(), row_len, out.len())?;
    if rows.is_empty() {
        return Ok(());
    }
    ffi::quantize(dtype, rows, row_len, out).map_err(|caught| RowError::Ggml { dtype, message: caught.message })?;
    check_scales(dtype, rows, out)
}

/// Below this, no block of any format overflows: scales are F16 at least, and no larger than the largest number. NVFP4's are E4M3,
/// up to 448, and its numbers up to 6.
fn safe(dtype: DType) -> f32 {
    if dtype == DType::NVFP4 { 6.0 * 448.0 } else { 32_768.0 }
}

/// Refuses `bytes` if `numbers`, which they were made of, did not fit: a block whose scale overflowed.
fn check_scales(dtype: DType, numbers: &[f32], bytes: &[u8]) -> Result<(), RowError> {
    let (block, block_bytes, safe) = (dtype.block_size(), dtype.block_bytes(), safe(dtype));
    if block == 1 || numbers.iter().all(|number| number.abs() <= safe) {
        return Ok(());
    }
    let mut back = vec![0.0; block];
    for (i, (numbers, bytes)) in numbers.chunks_exact(block).zip(bytes.chunks_exact(block_bytes)).enumerate() {
        let (mut largest, mut at) = (0f32, 0);
        for (j, number) in numbers.iter().enumerate() {
            if number.abs() > largest {
                (largest, at) = (number.abs(), j);
            }
        }
        // What was not finite before is the caller's.
        if largest <= safe || numbers.iter().any(|number| !number.is_finite()) {
            continue;
        }
        dequantize(dtype, bytes, &mut back)?;
        // The scale may also stay at its largest, as NVFP4's does, or vanish where squares of numbers overflow. A block of one bit
        // for each number has their mean.
        let most = back.iter().fold(0f32, |most, number| most.max(number.abs()));
        let finite = back.iter().all(|number| number.is_finite());
        let kept = finite && most >= largest / (4.0 * block as f32) && most / 4.0 <= largest;
        if dtype == DType::NVFP4 || !kept {
            return Err(RowError::TooLarge { dtype, at: i * block + at, number: numbers[at] });
        }
    }
    Ok(())
}

/// [`quantize`] on the threads of the [current](workers::Workers::current) workers, with the same bytes.
///
/// # Errors
///
/// Those of [`quantize`].
pub fn quantize_parallel(dtype: DType, rows: &[f32], row_len: usize, out: &mut [u8]) -> Result<(), RowError> {
    let row_bytes = check_quantize(dtype, rows.len(), row_len, out.len())?;
    let task_rows = (TASK / row_len.max(1)).max(1);
    let (numbers, bytes) = ((task_rows * row_len).max(1), (task_rows * row_bytes).max(1));
    let tasks = rows.chunks(numbers).zip(out.chunks_mut(bytes)).enumerate().collect();
    workers::try_for_each(tasks, |(i, (rows, out)): (usize, (&[f32], &mut [u8]))| {
        quantize(dtype, rows, row_len, out).map_err(|error| match error {
            RowError::TooLarge { dtype, at, number } => {
                RowError::TooLarge { dtype, at: i * task_rows * row_len + at, number }
            }
            other => other,
        })
    })
}

/// The index of the first NaN or infinity.
pub fn first_non_finite(numbers: &[f32]) -> Option<usize> {
    numbers.iter().position(|number| !number.is_finite())
}

fn check_bytes(dtype: DType, numbers: usize, found: usize) -> Result<(), RowError> {
    let expected = dtype.row_bytes(numbers).ok_or(RowError::RowLength { dtype, row_len: numbers })?;
    if expected == found { Ok(()) } else { Err(RowError::Bytes { dtype, numbers, expected, found }) }
}

/// Checks everything that [`quantize`] promises ggml, and returns the bytes of a row.
fn check_quantize(dtype: DType, numbers: usize, row_len: usize, found: usize) -> Result<usize, RowError> {
    check_writable(dtype)?;
    let row_bytes = dtype.row_bytes(row_len).ok_or(RowError::RowLength { dtype, row_len })?;
    let whole = if row_len == 0 { numbers == 0 } else { numbers.is_multiple_of(row_len) };
    if !whole {
        return Err(RowError::PartialRow { numbers, row_len });
    }
    check_bytes(dtype, numbers, found)?;
    Ok(row_bytes)
}

fn check_writable(dtype: DType) -> Result<(), RowError> {
    let integer_or_double = number_bytes(dtype).is_some() && dtype != DType::F32;
    if integer_or_double || matches!(dtype, DType::Q8_1 | DType::Q8_K) {
        return Err(RowError::Unwritable(dtype));
    }
    if ffi::needs_importance(dtype) { Err(RowError::NeedsImportance(dtype)) } else { Ok(()) }
}

/// Bytes of a number in the formats that [`widen_numbers`] reads.
fn number_bytes(dtype: DType) -> Option<usize> {
    use DType::{F32, F64, I8, I16, I32, I64};
    matches!(dtype, F32 | F64 | I8 | I16 | I32 | I64).then(|| dtype.block_bytes())
}

/// Reads the formats for which ggml has no function. Files are little-endian.
fn widen_numbers(dtype: DType, bytes: &[u8], out: &mut [f32]) -> bool {
    match dtype {
        DType::F32 => widen(bytes, out, f32::from_le_bytes),
        DType::F64 => widen(bytes, out, |number| f64::from_le_bytes(number) as f32),
        DType::I8 => widen(bytes, out, |number| f32::from(i8::from_le_bytes(number))),
        DType::I16 => widen(bytes, out, |number| f32::from(i16::from_le_bytes(number))),
        DType::I32 => widen(bytes, out, |number| i32::from_le_bytes(number) as f32),
        DType::I64 => widen(bytes, out, |number| i64::from_le_bytes(number) as f32),
        _ => return false,
    }
    true
}

fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    let (numbers, _) = bytes.as_chunks::<N>();
    out.iter_mut().zip(numbers).for_each(|(to, from)| *to = number(*from));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use half::{bf16, f16};

    /// The formats for which ggml first builds search grids, which takes it a quarter of a minute.
    const GRIDS: [DType; 4] = [DType::IQ3_XXS, DType::IQ3_S, DType::IQ2_S, DType::IQ1_M];

    fn writable() -> impl Iterator<Item = DType> {
        DType::all().filter(|dtype| can_quantize(*dtype) && !GRIDS.contains(dtype))
    }

    /// The synthetic data of ggml's tests/test-quantize-fns.cpp.
    fn wave(count: usize) -> Vec<f32> {
        (0..count).map(|i| 0.1 + 2.0 * (i as f32).cos()).collect()
    }

    fn quantized(dtype: DType, rows: &[f32], row_len: usize) -> Vec<u8> {
        let mut bytes = vec![0; dtype.row_bytes(rows.len()).unwrap()];
        quantize(dtype, rows, row_len, &mut bytes).unwrap();
        bytes
    }

    fn dequantized(dtype: DType, bytes: &[u8], count: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; count];
        dequantize(dtype, bytes, &mut out).unwrap();
        out
    }

    /// That file's measure: the norm of the differences over their number.
    fn error(a: &[f32], b: &[f32]) -> f64 {
        let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        squares.sqrt() / a.len() as f64
    }

    /// That file's bounds on 4096 numbers. It has none for iq1_m, which gets that of the other format of about one bit.
    fn bound(dtype: DType) -> f64 {
        match dtype {
            DType::F32 => 0.0,
            DType::Q1_0 | DType::IQ1_M => 0.025,
            DType::TQ1_0 | DType::TQ2_0 | DType::Q2_0 => 0.01,
            DType::Q2_K | DType::IQ2_S => 0.0075,
            DType::IQ3_XXS => 0.005,
            DType::Q3_K | DType::IQ3_S => 0.004,
            DType::NVFP4 => 0.003,
            _ => 0.002,
        }
    }

    fn check_error(dtype: DType) {
        let numbers = wave(4096);
        let error = error(&numbers, &dequantized(dtype, &quantized(dtype, &numbers, 4096), 4096));
        assert!(error <= bound(dtype), "{dtype}: {error}");
    }

    #[test]
    fn quantizing_stays_within_ggml_s_bounds() {
        writable().for_each(check_error);
    }

    #[test]
    fn formats_are_what_they_should_be() {
        let written: Vec<&str> = DType::all().filter(|dtype| can_quantize(*dtype)).map(DType::name).collect();
        assert_eq!(
            written,
            [
                "f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
                "iq3_xxs", "iq4_nl", "iq3_s", "iq2_s", "iq4_xs", "iq1_m", "bf16", "tq1_0", "tq2_0", "mxfp4", "nvfp4",
                "q1_0", "q2_0"
            ]
        );
        let unread: Vec<&str> = DType::all().filter(|dtype| !can_dequantize(*dtype)).map(DType::name).collect();
        assert_eq!(unread, ["q8_1", "q8_k"]);
    }

    #[test]
    fn formats_that_cannot_be_are_named() {
        assert_eq!(quantize(DType::I32, &[], 0, &mut []), Err(RowError::Unwritable(DType::I32)));
        assert_eq!(quantize(DType::Q8_K, &[], 0, &mut []), Err(RowError::Unwritable(DType::Q8_K)));
        assert_eq!(quantize(DType::IQ2_XS, &[], 0, &mut []), Err(RowError::NeedsImportance(DType::IQ2_XS)));
        let unreadable = dequantize(DType::Q8_1, &[0; 36], &mut [0.0; 32]);
        assert_eq!(unreadable, Err(RowError::Unreadable(DType::Q8_1)));
        assert_eq!(RowError::Unreadable(DType::Q8_1).to_string(), "q8_1 is no format to read weights from");
    }

    fn check_rows(dtype: DType) {
        let numbers = wave(3 * 512);
        let together = quantized(dtype, &numbers, 512);
        let apart: Vec<u8> = numbers.chunks(512).flat_map(|row| quantized(dtype, row, 512)).collect();
        assert_eq!(together, apart, "{dtype}");
    }

    #[test]
    fn rows_are_quantized_each_by_itself() {
        writable().for_each(check_rows);
    }

    #[test]
    fn parallel_is_the_same_at_every_length() {
        // One short row, an odd number of rows, more than one task, and a row longer than a task.
        for (count, row_len) in [(1, 256), (7, 256), (259, 512), (2, 1 << 17)] {
            let numbers = wave(count * row_len);
            for dtype in [DType::Q4_0, DType::Q6_K, DType::F16, DType::F32] {
                let bytes = quantized(dtype, &numbers, row_len);
                let mut parallel = vec![0; bytes.len()];
                quantize_parallel(dtype, &numbers, row_len, &mut parallel).unwrap();
                assert_eq!(bytes, parallel, "{dtype} {count}x{row_len}");
                let mut out = vec![f32::NAN; numbers.len()];
                dequantize_parallel(dtype, &bytes, &mut out).unwrap();
                assert_eq!(out, dequantized(dtype, &bytes, numbers.len()), "{dtype} {count}x{row_len}");
            }
        }
    }

    #[test]
    fn no_numbers_are_no_work() {
        for run in [quantize, quantize_parallel] {
            assert_eq!(run(DType::Q4_K, &[], 256, &mut []), Ok(()));
            assert_eq!(run(DType::F32, &[], 0, &mut []), Ok(()));
        }
        assert_eq!(dequantize_parallel(DType::Q4_K, &[], &mut []), Ok(()));
    }

    fn check_addresses(dtype: DType) {
        let numbers = wave(512);
        let bytes = quantized(dtype, &numbers, 256);
        // Long enough for several turns of the copy, the last one short.
        let long = bytes.repeat(30);
        let expected = dequantized(dtype, &long, 30 * 512);
        for shift in 1..=4 {
            let mut written = vec![0; bytes.len() + shift];
            quantize(dtype, &numbers, 256, &mut written[shift..]).unwrap();
            assert_eq!(bytes, written[shift..], "{dtype} written at {shift}");
            let shifted = [&vec![0; shift], &long[..]].concat();
            assert_eq!(expected, dequantized(dtype, &shifted[shift..], 30 * 512), "{dtype} read at {shift}");
        }
    }

    #[test]
    fn bytes_may_lie_at_any_address() {
        writable().for_each(check_addresses);
    }

    #[test]
    fn lengths_are_checked() {
        let q4_k = DType::Q4_K;
        for run in [quantize, quantize_parallel] {
            let wrong_row = run(q4_k, &[0.0; 300], 300, &mut [0; 144]);
            assert_eq!(wrong_row, Err(RowError::RowLength { dtype: q4_k, row_len: 300 }));
            let partial = run(q4_k, &[0.0; 256], 512, &mut [0; 144]);
            assert_eq!(partial, Err(RowError::PartialRow { numbers: 256, row_len: 512 }));
            let zero = run(q4_k, &[0.0; 256], 0, &mut [0; 144]);
            assert_eq!(zero, Err(RowError::PartialRow { numbers: 256, row_len: 0 }));
            let short = run(q4_k, &[0.0; 256], 256, &mut [0; 143]);
            assert_eq!(short, Err(RowError::Bytes { dtype: q4_k, numbers: 256, expected: 144, found: 143 }));
        }
        for run in [dequantize, dequantize_parallel] {
            let long = run(DType::Q8_0, &[0; 35], &mut [0.0; 32]);
            assert_eq!(long, Err(RowError::Bytes { dtype: DType::Q8_0, numbers: 32, expected: 34, found: 35 }));
            let wrong = run(DType::Q8_0, &[0; 34], &mut [0.0; 31]);
            assert_eq!(wrong, Err(RowError::RowLength { dtype: DType::Q8_0, row_len: 31 }));
        }
    }

    #[test]
    fn halves_round_to_the_nearest() {
        let numbers: Vec<f32> = wave(1000).into_iter().chain([0.0, -0.0, 65504.0, 1e-7, f32::INFINITY]).collect();
        let f16s: Vec<u8> = numbers.iter().flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect();
        assert_eq!(quantized(DType::F16, &numbers, numbers.len()), f16s);
        let bf16s: Vec<u8> = numbers.iter().flat_map(|n| bf16::from_f32(*n).to_le_bytes()).collect();
        assert_eq!(quantized(DType::BF16, &numbers, numbers.len()), bf16s);
    }

    #[test]
    fn every_half_is_read_exactly() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let read = |dtype| dequantized(dtype, &bytes, bits.len());
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(read(DType::F16).iter().zip(&bits).all(|(a, bits)| same(*a, f16::from_bits(*bits).to_f32())));
        assert!(read(DType::BF16).iter().zip(&bits).all(|(a, bits)| same(*a, bf16::from_bits(*bits).to_f32())));
    }

    #[test]
    fn other_numbers_are_converted() {
        assert_eq!(dequantized(DType::I8, &[1, 0xff, 0x80], 3), [1.0, -1.0, -128.0]);
        assert_eq!(dequantized(DType::I16, &(-300i16).to_le_bytes(), 1), [-300.0]);
        assert_eq!(dequantized(DType::I32, &16_777_217i32.to_le_bytes(), 1), [16_777_216.0]);
        assert_eq!(dequantized(DType::I64, &(-1i64 << 40).to_le_bytes(), 1), [-1_099_511_627_776.0]);
        assert_eq!(dequantized(DType::F64, &0.1f64.to_le_bytes(), 1), [0.1]);
        assert_eq!(dequantized(DType::F64, &1e300f64.to_le_bytes(), 1), [f32::INFINITY]);
    }

    fn check_odd_numbers(dtype: DType) {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE / 2.0] {
            for place in [0, 100, 511] {
                let mut numbers = wave(512);
                numbers[place] = odd;
                let mut bytes = vec![0; dtype.row_bytes(512).unwrap()];
                let _ = quantize(dtype, &numbers, 512, &mut bytes);
                dequantized(dtype, &bytes, 512);
            }
        }
    }

    /// In every format that is written: what comes back is finite, or it was said to be too large.
    #[test]
    fn scales_that_overflow_are_errors() {
        for dtype in writable().filter(|dtype| dtype.block_size() > 1) {
            let block = dtype.block_size();
            let mut refused = 0;
            for exponent in 0..=38 {
                let mut numbers = wave(4 * block);
                numbers[2 * block + 3] = 1.5 * 10f32.powi(exponent);
                let mut bytes = vec![0; dtype.row_bytes(numbers.len()).unwrap()];
                let largest = match quantize(dtype, &numbers, 2 * block, &mut bytes) {
                    Ok(()) => {
                        let back = dequantized(dtype, &bytes, numbers.len());
                        assert!(back.iter().all(|number| number.is_finite()), "{dtype}: 1e{exponent}");
                        let largest = back.iter().fold(0f32, |most, number| most.max(number.abs()));
                        assert!(
                            largest > 0.01 * numbers[2 * block + 3].max(1.0) / block as f32,
                            "{dtype}: 1e{exponent}"
                        );
                        continue;
                    }
                    Err(RowError::TooLarge { at, number, .. }) => (at, number),
                    Err(other) => panic!("{dtype}: {other}"),
                };
                assert_eq!(largest, (2 * block + 3, numbers[2 * block + 3]), "{dtype}");
                let parallel = quantize_parallel(dtype, &numbers, 2 * block, &mut bytes).unwrap_err();
                assert_eq!(parallel, RowError::TooLarge { dtype, at: largest.0, number: largest.1 });
                refused += 1;
            }
            // Only MXFP4's scales have F32's range.
            assert!(refused > 20 || dtype == DType::MXFP4, "{dtype}: {refused}");
        }
    }

    #[test]
    fn what_is_not_finite_ends_no_process() {
        writable().for_each(check_odd_numbers);
    }

    /// Apart from the others, since ggml builds its grids for a quarter of a minute.
    #[test]
    fn formats_with_grids_do_the_same() {
        for check in [check_error, check_rows, check_addresses, check_odd_numbers] {
            GRIDS.into_iter().for_each(check);
        }
    }

    #[test]
    fn the_first_number_that_is_not_finite_is_found() {
        assert_eq!(first_non_finite(&[1.0, f32::MAX]), None);
        assert_eq!(first_non_finite(&[1.0, f32::NAN, f32::INFINITY]), Some(1));
        assert_eq!(first_non_finite(&[f32::NEG_INFINITY]), Some(0));
    }

    #[test]
    fn any_bytes_are_read() {
        let bytes: Vec<u8> = (0..8 * 292 * 256u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for dtype in DType::all().filter(|dtype| can_dequantize(*dtype)) {
            let blocks = bytes.len() / dtype.block_bytes();
            dequantized(dtype, &bytes[..blocks * dtype.block_bytes()], blocks * dtype.block_size());
        }
    }
}
