//! Structs that begin with their size: see "Options" in the header.

use std::mem::size_of;
use std::ptr;

use crate::error::{E_ARGUMENT, Failure, OK};

/// Larger ones are garbage, and looking at their end would read who knows what.
const LARGEST: usize = 1 << 16;

/// A struct of the header that begins with `size_t struct_size`.
///
/// # Safety
/// `#[repr(C)]`, the size is the first member, and every pattern of bits is a valid value.
pub(crate) unsafe trait Versioned: Copy {
    /// What the header calls it.
    const NAME: &'static str;
    /// Its size in the first version of the library that had it.
    const FIRST: usize;

    /// Every member at its default; the size does not matter.
    fn initial() -> Self;
}

/// Implements [`Versioned`]. `$first` is the size of the struct's first version, `$initial` the value that init functions give.
macro_rules! versioned {
    ($type:ty, $name:literal, $first:expr, $initial:expr) => {
        // SAFETY: see the struct: C's layout, numbers and pointers only, the size first.
        unsafe impl crate::options::Versioned for $type {
            const NAME: &'static str = $name;
            const FIRST: usize = $first;

            fn initial() -> Self {
                $initial
            }
        }
    };
}
pub(crate) use versioned;

fn check_size<T: Versioned>(size: usize) -> Result<(), Failure> {
    if (T::FIRST..=LARGEST).contains(&size) {
        return Ok(());
    }
    let name = T::NAME;
    let message = format!("{name}.struct_size: expected {} or more, found {size}", T::FIRST);
    Err(Failure::argument(message, format!("set it to sizeof({name}) before the call")))
}

/// The options at `from`: what a smaller struct lacks is at its default, and a larger one has nothing but zeros beyond.
///
/// # Safety
/// `from` is NULL, or readable for as many bytes as its first member says.
pub(crate) unsafe fn read<T: Versioned>(from: *const T) -> Result<T, Failure> {
    if from.is_null() {
        return Err(Failure::null(T::NAME));
    }
    // SAFETY: not NULL; the caller promises that the first member is there.
    let size = unsafe { from.cast::<usize>().read() };
    check_size::<T>(size)?;
    let mut value = T::initial();
    let known = size.min(size_of::<T>());
    // SAFETY: `known` bytes are readable there, as the caller promises, and writable here; any bits are a value.
    unsafe { ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast(), known) };
    for at in known..size {
        // SAFETY: below `size`.
        if unsafe { from.cast::<u8>().add(at).read() } != 0 {
            let name = T::NAME;
            let message = format!("{name}: expected zeros beyond byte {known}, found another byte at {at}");
            let hint = "an option was set that this version of the library does not know, or init was not called";
            return Err(Failure::argument(message, hint));
        }
    }
    Ok(value)
}

/// Writes `value` to `to`, as far as its size goes; what lies beyond is set to zero. The size stays.
///
/// # Safety
/// `to` is NULL, or readable and writable for as many bytes as its first member says.
pub(crate) unsafe fn write<T: Versioned>(to: *mut T, value: T) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::null(T::NAME));
    }
    // SAFETY: not NULL; the caller promises that the first member is there.
    let size = unsafe { to.cast::<usize>().read() };
    check_size::<T>(size)?;
    // SAFETY: the caller promises `size` bytes.
    unsafe { fill(to, value, size) };
    Ok(())
}

/// What an init function does.
///
/// # Safety
/// `to` is NULL, or writable for `size` bytes.
pub(crate) unsafe fn init<T: Versioned>(to: *mut T, size: usize) -> i32 {
    if to.is_null() || check_size::<T>(size).is_err() {
        return E_ARGUMENT;
    }
    // SAFETY: not NULL; the caller promises `size` bytes.
    unsafe { fill(to, T::initial(), size) };
    OK
}

/// # Safety
/// `to` is writable for `size` bytes, which are at least those of the first member.
unsafe fn fill<T: Versioned>(to: *mut T, value: T, size: usize) {
    // SAFETY: the caller's promise; `value` is readable for its own size.
    unsafe {
        ptr::write_bytes(to.cast::<u8>(), 0, size);
        ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to.cast(), size.min(size_of::<T>()));
        to.cast::<usize>().write(size);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A struct that has grown twice; the first version ended behind `one`.
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct Grown {
        struct_size: usize,
        one: u64,
        two: u64,
        three: u64,
    }

    versioned!(Grown, "grown", 16, Grown { struct_size: 0, one: 1, two: 2, three: 3 });

    fn given(struct_size: usize) -> Grown {
        Grown { struct_size, one: 11, two: 12, three: 13 }
    }

    fn read_as(size: usize) -> Result<Grown, Failure> {
        // Room for sizes beyond the struct.
        #[repr(C)]
        struct Room(Grown, [u64; 2]);
        let room = Room(given(size), [0; 2]);
        // SAFETY: the room is larger than any size that is accepted here.
        unsafe { read(&raw const room.0) }
    }

    #[test]
    fn what_an_older_struct_lacks_has_its_default() {
        assert_eq!(read_as(16).unwrap(), Grown { struct_size: 16, one: 11, two: 2, three: 3 });
        assert_eq!(read_as(24).unwrap(), Grown { struct_size: 24, one: 11, two: 12, three: 3 });
        assert_eq!(read_as(32).unwrap(), given(32));
        assert_eq!(read_as(48).unwrap(), given(48));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for size in [0, 8, 15, LARGEST + 1, usize::MAX] {
            assert_eq!(read_as(size).unwrap_err().code, E_ARGUMENT, "{size}");
        }
    }

    #[test]
    fn an_older_struct_is_not_written_beyond_its_end() {
        let mut room = given(16);
        // SAFETY: 16 of its 32 bytes.
        unsafe { write(&raw mut room, Grown { struct_size: 0, one: 21, two: 22, three: 23 }) }.unwrap();
        assert_eq!(room, Grown { struct_size: 16, one: 21, two: 12, three: 13 });
        // SAFETY: 24 of its 32 bytes.
        assert_eq!(unsafe { init(&raw mut room, 24) }, OK);
        assert_eq!(room, Grown { struct_size: 24, one: 1, two: 2, three: 13 });
    }
}
