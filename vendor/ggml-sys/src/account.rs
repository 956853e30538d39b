//! What ggml's backends have allocated, counted by stand-ins for the allocators that they call (see `shim/account.h`). Pools
//! and scratch buffers count like everything else.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

/// Whose memory it is. All devices of a kind share an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Memory {
    /// Buffers of the CPU backend.
    Host = 0,
    /// A GPU's own.
    Device = 1,
    /// The host's, allocated by a GPU's driver for copies.
    Pinned = 2,
}

/// An account of memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Account {
    /// Held now.
    pub now: usize,
    /// The most that was held at once since [`reset_peak`].
    pub peak: usize,
    /// How many requests were refused, ever.
    pub refused: usize,
    /// What the last of them asked for.
    pub refused_bytes: usize,
}

unsafe extern "C" {
    fn ph_account_read(memory: c_int, account: *mut Account);
    safe fn ph_account_reset_peak(memory: c_int);
    safe fn ph_refuse_allocations(memory: c_int, after: usize);
    safe fn ph_allow_allocations(memory: c_int);
    safe fn ph_share_heap();
    safe fn ph_forget_block();
    fn ph_last_block(size: *mut usize) -> *mut c_void;
    fn ph_aligned_free(data: *mut c_void, size: usize);
}

/// Has all threads of the process share one heap, so that none takes address space for its own. For a program, not for a library.
pub fn share_heap() {
    ph_share_heap();
}

/// A block of the CPU's allocator, which ggml frees, or has lost when it was unwound.
#[derive(Debug)]
pub struct Block {
    data: NonNull<c_void>,
    size: usize,
}

// SAFETY: an address; `free` says what its caller must know.
unsafe impl Send for Block {}

impl Block {
    /// Frees it in ggml's place.
    ///
    /// # Safety
    /// ggml neither frees nor uses it any more: what owned it was lost, or is leaked.
    pub unsafe fn free(self) {
        // SAFETY: it is of that allocator and of that size; the caller's promise for the rest.
        unsafe { ph_aligned_free(self.data.as_ptr(), self.size) };
    }
}

/// Runs `work`; with what comes of it, the last block that it allocated on this thread and has not freed.
pub fn watch_block<R>(work: impl FnOnce() -> R) -> (R, Option<Block>) {
    ph_forget_block();
    let result = work();
    let mut size = 0;
    // SAFETY: `size` is writable.
    let data = unsafe { ph_last_block(&mut size) };
    (result, NonNull::new(data).map(|data| Block { data, size }))
}

/// What ggml's Vulkan backend may use of the devices that it has opened, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VulkanFeatures {
    /// Cooperative matrices.
    pub matrices: bool,
    /// NVIDIA's own, for which more is converted.
    pub nvidia_matrices: bool,
    /// Products of bytes, summed.
    pub byte_products: bool,
    /// A vendor whose devices say how many cores they have.
    pub known_cores: bool,
}

/// As they are known now: a device that is not open yet adds nothing.
pub fn vulkan_features() -> VulkanFeatures {
    #[cfg(feature = "vulkan")]
    unsafe extern "C" {
        safe fn ph_vulkan_features() -> std::ffi::c_uint;
    }
    #[cfg(feature = "vulkan")]
    let bits = ph_vulkan_features();
    #[cfg(not(feature = "vulkan"))]
    let bits = 0u32;
    let has = |bit: u32| bits & (1 << bit) != 0;
    VulkanFeatures { matrices: has(0), nvidia_matrices: has(1), byte_products: has(2), known_cores: has(3) }
}

/// A card that CUDA has, as far as scratch memory depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CudaCard {
    /// A hundred times the major and ten times the minor compute capability.
    pub capability: u32,
    /// How many multiprocessors it has.
    pub multiprocessors: u32,
    /// What the driver took for the context and for a handle of cuBLAS, in bytes.
    pub context_bytes: usize,
}

/// The CUDA card number `device`. The first call for it makes its context.
#[cfg(feature = "cuda")]
pub fn cuda_card(device: c_int) -> Option<CudaCard> {
    unsafe extern "C" {
        fn ph_cuda_card(device: c_int, card: *mut CudaCard) -> bool;
    }
    let mut card = CudaCard::default();
    // SAFETY: `CudaCard` is `ph_cuda_card_info` of shim/account_cuda.cpp, and writable.
    unsafe { ph_cuda_card(device, &mut card) }.then_some(card)
}

/// The CUDA card number `device`: none, in a build without CUDA.
#[cfg(not(feature = "cuda"))]
pub fn cuda_card(_: c_int) -> Option<CudaCard> {
    None
}

/// The account of `memory` as it stands.
pub fn read(memory: Memory) -> Account {
    let mut account = Account::default();
    // SAFETY: `Account` is `ph_account` of shim/account.h, and writable.
    unsafe { ph_account_read(memory as c_int, &mut account) };
    account
}

/// From now on the peak counts from what is held now.
pub fn reset_peak(memory: Memory) {
    ph_account_reset_peak(memory as c_int);
}

/// For tests: after `after` more allocations all fail, as on a device that is full, until [`allow_allocations`].
#[doc(hidden)]
pub fn refuse_allocations(memory: Memory, after: usize) {
    ph_refuse_allocations(memory as c_int, after);
}

/// Ends what [`refuse_allocations`] began.
#[doc(hidden)]
pub fn allow_allocations(memory: Memory) {
    ph_allow_allocations(memory as c_int);
}
