//! Activations, quantized and laid out for a kernel.

use super::BLOCK;

/// How a kernel wants its activations: tiles of `tokens` tokens and `stretch` columns, codes of one byte or two.
///
/// A tile is a record for each block of 32 columns: the codes, tokens interleaved by `turn` bytes; then a scale of each token,
/// f32; then the sum of each token's codes, i32. A turn mostly has 4 bytes: one 32-bit broadcast meets 4 (or 2) columns of the
/// weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Tokens in a tile.
    pub tokens: usize,
    /// Bytes of a code.
    pub code_bytes: usize,
    /// Bytes of a turn: tokens are interleaved in chunks of this size. 4, or 8 if codes have one byte.
    pub turn: usize,
    /// Columns of a tile, and of a panel of weights.
    pub stretch: usize,
}

/// 32 numbers: `scale * code` each.
struct Block {
    codes: [i8; BLOCK],
    scale: f32,
    /// Of the codes.
    sum: i32,
}

/// Adding it to a number below 2^22 in size leaves the nearest whole number in the low bits; even ones win ties.
const ROUNDER: f32 = (3 << 22) as f32;

/// As ggml's `quantize_row_q8_0` has it, but the scale is not rounded. A block with a number that is not finite has a scale
/// of NaN, so that it shows in whatever is computed from it.
#[inline(always)]
fn quantize(numbers: &[f32; BLOCK]) -> Block {
    // As integers, bits of magnitudes have the order of the magnitudes, and NaN comes last.
    let most = numbers.iter().fold(0, |most: u32, number| most.max(number.to_bits() & 0x7FFF_FFFF));
    let most = f32::from_bits(most);
    if !most.is_finite() {
        return Block { codes: [0; BLOCK], scale: f32::NAN, sum: 0 };
    }
    let scale = most / 127.0;
    // Below, the reciprocal would overflow; the numbers are nothing beside any others.
    if scale < f32::MIN_POSITIVE {
        return Block { codes: [0; BLOCK], scale: 0.0, sum: 0 };
    }
    let inverse = 1.0 / scale;
    let mut codes = [0; BLOCK];
    let mut sum = 0;
    for (code, number) in codes.iter_mut().zip(numbers) {
        let rounded = (number * inverse + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i32;
        sum += rounded;
        *code = rounded as i8; // -127 to 127
    }
    Block { codes, scale, sum }
}

impl Layout {
    /// Bytes of a tile's record.
    pub(super) fn record_bytes(self) -> usize {
        self.tokens * (BLOCK * self.code_bytes + 8)
    }

    /// Writes the tile of `rows`, at most as many as it has tokens, to `tile`. Tokens beyond are zeros. Rows have whole
    /// blocks, as many as the tile has records.
    #[inline(always)]
    pub(super) fn pack(self, rows: &[&[f32]], tile: &mut [u8]) {
        let record_bytes = self.record_bytes();
        if rows.len() < self.tokens {
            tile.fill(0);
        }
        for (token, row) in rows.iter().enumerate() {
            for (numbers, record) in row.as_chunks::<BLOCK>().0.iter().zip(tile.chunks_exact_mut(record_bytes)) {
                self.write(&quantize(numbers), token, record);
            }
        }
    }

    #[inline(always)]
    fn write(self, block: &Block, token: usize, record: &mut [u8]) {
        let (codes, scales) = record.split_at_mut(self.tokens * BLOCK * self.code_bytes);
        if self.code_bytes == 1 && self.turn == 8 {
            self.write_bytes::<8>(block, token, codes);
        } else if self.code_bytes == 1 {
            self.write_bytes::<4>(block, token, codes);
        } else {
            let places = codes.as_chunks_mut::<4>().0.iter_mut().skip(token).step_by(self.tokens);
            for (place, [a, b]) in places.zip(block.codes.as_chunks::<2>().0) {
                let ([a0, a1], [b0, b1]) = (i16::from(*a).to_ne_bytes(), i16::from(*b).to_ne_bytes());
                *place = [a0, a1, b0, b1];
            }
        }
        let scales = scales.as_chunks_mut::<4>().0;
        scales[token] = block.scale.to_ne_bytes();
        scales[self.tokens + token] = block.sum.to_ne_bytes();
    }

    #[inline(always)]
    fn write_bytes<const TURN: usize>(self, block: &Block, token: usize, codes: &mut [u8]) {
        let places = codes.as_chunks_mut::<TURN>().0.iter_mut().skip(token).step_by(self.tokens);
        for (place, codes) in places.zip(block.codes.as_chunks::<TURN>().0) {
            *place = codes.map(|code| code as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> [f32; BLOCK] {
        std::array::from_fn(|i| (i as f32 - 11.0) * 0.37)
    }

    #[test]
    fn codes_are_within_half_a_step() {
        let numbers = numbers();
        let block = quantize(&numbers);
        for (number, code) in numbers.iter().zip(block.codes) {
            assert!((number - block.scale * f32::from(code)).abs() <= 0.501 * block.scale, "{number} as {code}");
        }
        assert_eq!(block.codes.iter().map(|code| code.unsigned_abs()).max(), Some(127));
        let sum: i32 = block.codes.iter().map(|&code| i32::from(code)).sum();
        assert_eq!(block.sum, sum);
    }

    #[test]
    fn what_is_not_finite_shows() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = numbers();
            numbers[17] = bad;
            let block = quantize(&numbers);
            assert!(block.scale.is_nan(), "{bad}");
        }
    }

    #[test]
    fn the_smallest_and_the_largest() {
        assert_eq!(quantize(&[f32::from_bits(1); BLOCK]).codes, [0; BLOCK]);
        let block = quantize(&[f32::MAX; BLOCK]);
        assert_eq!(block.codes, [127; BLOCK]);
        assert!(block.scale.is_finite());
    }

    #[test]
    fn tokens_take_turns() {
        let layout = Layout { tokens: 3, code_bytes: 2, turn: 4, stretch: BLOCK };
        let (a, b) = (numbers(), numbers().map(|number| -number));
        let mut tile = vec![0xAA; layout.record_bytes()];
        layout.pack(&[&a, &b], &mut tile);
        let codes = quantize(&a).codes.map(i16::from);
        for pair in 0..16 {
            let words = &tile[12 * pair..];
            let [a0, a1, b0, b1, none0, none1] =
                std::array::from_fn(|i| i16::from_ne_bytes([words[2 * i], words[2 * i + 1]]));
            assert_eq!([a0, a1, -b0, -b1, none0, none1], [codes[2 * pair], codes[2 * pair + 1], a0, a1, 0, 0]);
        }
        assert_eq!(tile[3 * 64..][..4], quantize(&a).scale.to_ne_bytes());
        assert_eq!(tile[3 * 64 + 8..][..4], [0; 4]);
        assert_eq!(tile[3 * 64 + 12..][..4], quantize(&a).sum.to_ne_bytes());
    }

    #[test]
    fn turns_of_bytes() {
        let (a, b) = (numbers(), numbers().map(|number| 1.5 - number));
        for turn in [4, 8] {
            let layout = Layout { tokens: 2, code_bytes: 1, turn, stretch: BLOCK };
            let mut tile = vec![0xAA; layout.record_bytes()];
            layout.pack(&[&a, &b], &mut tile);
            for (token, numbers) in [a, b].iter().enumerate() {
                for (i, code) in quantize(numbers).codes.into_iter().enumerate() {
                    let place = (i / turn * 2 + token) * turn + i % turn;
                    assert_eq!(tile[place] as i8, code, "token {token}, number {i}, turns of {turn}");
                }
            }
        }
    }
}
