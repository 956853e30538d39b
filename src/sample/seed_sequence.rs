//! NumPy's `SeedSequence`, by which torchsde seeds the generators of its trees: Melissa O'Neill's `seed_seq_fe`, over a pool
//! of [`POOL`] words.

/// torchsde's `pool_size`, as diffusers sets it.
const POOL: usize = 24;

const INIT_A: u32 = 0x43b0_d7e5;
const MULT_A: u32 = 0x931e_8875;
const INIT_B: u32 = 0x8b51_f9dd;
const MULT_B: u32 = 0x58f3_8ded;
const MIX_LEFT: u32 = 0xca01_f9dd;
const MIX_RIGHT: u32 = 0x4973_f715;
const SHIFT: u32 = 16;

/// `SeedSequence(entropy, spawn_key=key, pool_size=24).generate_state(N)`.
pub(super) fn state<const N: usize>(entropy: u64, key: &[u64]) -> [u32; N] {
    let pool = pool(&words(entropy, key));
    let mut constant = INIT_B;
    std::array::from_fn(|i| {
        let mut value = pool[i % POOL] ^ constant;
        constant = constant.wrapping_mul(MULT_B);
        value = value.wrapping_mul(constant);
        value ^ value >> SHIFT
    })
}

/// What is mixed: the entropy, filled up to the pool if a key follows, and the key.
fn words(entropy: u64, key: &[u64]) -> Vec<u32> {
    let mut words = halves(entropy);
    if !key.is_empty() {
        words.resize(POOL, 0);
        words.extend(key.iter().flat_map(|&number| halves(number)));
    }
    words
}

/// The low word of a number and, unless that is 0, the high one.
fn halves(number: u64) -> Vec<u32> {
    let [low, high] = [number as u32, (number >> 32) as u32];
    if high == 0 { vec![low] } else { vec![low, high] }
}

fn pool(words: &[u32]) -> [u32; POOL] {
    let mut constant = INIT_A;
    let mut hashed = |word: u32| {
        let mut value = word ^ constant;
        constant = constant.wrapping_mul(MULT_A);
        value = value.wrapping_mul(constant);
        value ^ value >> SHIFT
    };
    let mut pool: [u32; POOL] = std::array::from_fn(|i| hashed(words.get(i).copied().unwrap_or(0)));
    for from in 0..POOL {
        for to in 0..POOL {
            if from != to {
                pool[to] = mixed(pool[to], hashed(pool[from]));
            }
        }
    }
    for &word in words.iter().skip(POOL) {
        for place in &mut pool {
            *place = mixed(*place, hashed(word));
        }
    }
    pool
}

fn mixed(x: u32, y: u32) -> u32 {
    let mixed = MIX_LEFT.wrapping_mul(x).wrapping_sub(MIX_RIGHT.wrapping_mul(y));
    mixed ^ mixed >> SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_those_of_numpy() {
        assert_eq!(state(0, &[]), [4025752534, 2687548107, 2326983537, 1576567101]);
        assert_eq!(state(5, &[]), [3154616629, 1086096781, 1700057493, 3338405053]);
        assert_eq!(state(1099511627783, &[]), [3531690330, 3002667236, 1514406079, 2664012699]);
        assert_eq!(state(5, &[0, 0]), [2064821470, 1826486279, 462128158, 875869577]);
        assert_eq!(state(5, &[3, 2]), [432122160, 857451279, 845070096, 3996557897]);
        assert_eq!(state(9223372036854775808, &[8589934593, 34]), [894298010, 3552038628, 3248340816, 2806300328]);
    }
}
