//! What the guard catches, what it lets through, and what still ends the process.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::ptr::null_mut;

use ggml_sys::testing::{ph_test_assert, ph_test_throw};
use ggml_sys::*;

fn fail() {
    ph_test_assert();
}

fn caught(f: impl FnOnce()) -> Caught {
    guard(f).expect_err("nothing was caught")
}

#[test]
fn returns_the_closure_s_value() {
    assert_eq!(guard(|| vec![1, 2]), Ok(vec![1, 2]));
    assert_eq!(guard_compute(|| 3), Ok(3));
}

#[test]
fn an_assertion_is_caught_with_its_place() {
    let caught = caught(fail);
    assert_eq!(caught.kind, CaughtKind::Assertion);
    assert!(
        caught.message.contains("shim.cpp:") && caught.message.contains("GGML_ASSERT(1 + 1 == 3) failed"),
        "{caught}"
    );
}

#[test]
fn every_kind_of_exception_is_caught() {
    for run in [guard::<()>, guard_compute::<()>] as [fn(fn()) -> Result<(), Caught>; 2] {
        let kinds = [|| ph_test_throw(0), || ph_test_throw(1), || ph_test_throw(2)] as [fn(); 3];
        let caught = kinds.map(|throw| run(throw).unwrap_err());
        assert_eq!(caught[0], Caught { kind: CaughtKind::Exception, message: "thrown by a test".into() });
        assert_eq!(caught[1].kind, CaughtKind::OutOfMemory);
        assert_eq!(caught[2].kind, CaughtKind::Unknown);
    }
}

#[test]
fn destructors_run_on_the_way_out() {
    struct Count<'a>(&'a Cell<u32>);
    impl Drop for Count<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let dropped = Cell::new(0);
    for throw in [|| ph_test_throw(0), fail as fn()] {
        let captured = Count(&dropped);
        caught(|| {
            let _captured = captured;
            let _local = Count(&dropped);
            throw();
        });
    }
    assert_eq!(dropped.get(), 4);
}

#[test]
fn guards_nest_and_the_innermost_catches() {
    let outer = guard(|| {
        let inner = caught(fail);
        ph_test_throw(0);
        inner
    });
    assert_eq!(outer.unwrap_err().kind, CaughtKind::Exception);
}

#[test]
fn a_destructor_may_guard_while_its_thread_panics() {
    struct Guards<'a>(&'a Cell<Option<CaughtKind>>);
    impl Drop for Guards<'_> {
        fn drop(&mut self) {
            self.0.set(Some(caught(fail).kind));
        }
    }
    let kind = Cell::new(None);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _guards = Guards(&kind);
        panic!("a test's own");
    }));
    assert!(panicked.is_err());
    assert_eq!(kind.get(), Some(CaughtKind::Assertion));
}

fn context(mem_size: usize) -> *mut ggml_context {
    // SAFETY: ggml allocates the memory itself.
    unsafe { ggml_init(ggml_init_params { mem_size, mem_buffer: null_mut(), no_alloc: true }) }
}

#[test]
fn mismatched_shapes_are_caught_and_the_context_stays_usable() {
    let ctx = guard(|| context(1 << 16)).unwrap();
    for _ in 0..3 {
        // SAFETY: the context is live; ggml_mul_mat asserts that the tensors fit, which they do not.
        let product = guard(|| unsafe {
            let a = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 8, 4);
            let b = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 7, 2);
            ggml_mul_mat(ctx, a, b)
        });
        let message = product.unwrap_err().message;
        assert!(message.contains("ggml_can_mul_mat"), "{message}");
    }
    // SAFETY: as above, with tensors that fit; then the context is freed, once.
    guard(|| unsafe {
        let a = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 8, 4);
        let b = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 8, 2);
        assert_eq!((*ggml_mul_mat(ctx, a, b)).ne, [4, 2, 1, 1]);
        ggml_free(ctx);
    })
    .unwrap();
}

#[test]
fn failed_allocations_are_null_or_caught() {
    // SAFETY: the buffer type is ggml's own and lives for ever.
    let buffer = guard(|| unsafe { ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), 1 << 60) });
    assert_eq!(buffer, Ok(null_mut()));
    assert_eq!(guard(|| context(1 << 60)).unwrap_err().kind, CaughtKind::Assertion);
    // Still usable.
    // SAFETY: as above; the buffer is freed once.
    guard(|| unsafe {
        let buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), 1 << 10);
        assert!(!buffer.is_null());
        ggml_backend_buffer_free(buffer);
    })
    .unwrap();
}

#[test]
fn threads_catch_on_their_own() {
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| (0..1000).map(|_| caught(fail).kind).filter(|k| *k == CaughtKind::Assertion).count())
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), 1000);
    }
}

/// Runs the test `name` of this file again in a process of its own, where `in_child()` holds.
fn child(name: &str) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env("PINHOLE_TEST_CHILD", name);
    command.output().unwrap()
}

fn in_child() -> bool {
    env::var_os("PINHOLE_TEST_CHILD").is_some()
}

#[track_caller]
fn assert_aborted(output: &Output, message: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    #[cfg(unix)]
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(6), "no SIGABRT: {stderr}");
    assert!(!output.status.success());
    assert!(stderr.contains(message), "{stderr}");
}

#[test]
fn a_panic_in_a_guard_aborts() {
    if in_child() {
        let _ = catch_unwind(|| guard(|| panic!("not allowed here")));
        return;
    }
    let output = child("a_panic_in_a_guard_aborts");
    assert_aborted(&output, "not allowed here");
    // What the runtime says once a C++ handler has swallowed a panic: the trampoline has to be first.
    assert!(!String::from_utf8_lossy(&output.stderr).contains("must be rethrown"));
}

#[test]
fn an_assertion_while_computing_aborts_with_its_message() {
    if in_child() {
        let _ = guard(|| guard_compute(fail));
        return;
    }
    assert_aborted(&child("an_assertion_while_computing_aborts_with_its_message"), "GGML_ASSERT(1 + 1 == 3) failed");
}

#[test]
fn an_assertion_outside_a_guard_aborts_with_its_message() {
    if in_child() {
        guard(|| ()).unwrap();
        fail();
        return;
    }
    assert_aborted(&child("an_assertion_outside_a_guard_aborts_with_its_message"), "GGML_ASSERT(1 + 1 == 3) failed");
}
