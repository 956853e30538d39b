//! ggml's threads, as they are compiled here: who waits sleeps, and what cannot be started leaves nothing behind. One test in
//! a process of its own, since it counts threads and what they use.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::ffi::{c_int, c_void};
use std::fs;
use std::process::Command;
use std::ptr::null_mut;
use std::time::Duration;

use ggml_sys::*;

const THREADS: i32 = 4;
const NAP: Duration = Duration::from_millis(200);

/// More threads than the limit of [`limited`] has stacks for.
const MANY: i32 = 400;
const CHILD: &str = "PINHOLE_TEST_FEW_THREADS";

/// The first thread is late; the others wait for it.
unsafe extern "C-unwind" fn late(_: *mut ggml_tensor, _: *const ggml_tensor, ith: c_int, _: c_int, _: *mut c_void) {
    if ith == 0 {
        std::thread::sleep(NAP);
    }
}

/// Threads of this process.
fn tasks() -> Vec<fs::DirEntry> {
    fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap).collect()
}

/// How long they have run on a processor.
fn used() -> Duration {
    let times = tasks().into_iter().map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(times.sum())
}

fn pool(threads: i32) -> Result<*mut ggml_threadpool, Caught> {
    guard(|| {
        // SAFETY: ggml's own parameters, which it copies.
        unsafe {
            let mut params = ggml_threadpool_params_default(threads);
            params.poll = 0;
            ggml_threadpool_new(&mut params)
        }
    })
}

/// How long the threads of a pool were on a processor while the first of them slept [`NAP`].
fn used_while_waiting() -> Duration {
    let pool = pool(THREADS).unwrap();
    let before = used();
    let status = guard_compute(|| {
        // SAFETY: every object is made here, used while it lives and freed once; the operation touches nothing, and needs no
        // work space.
        unsafe {
            let ctx = ggml_init(ggml_init_params { mem_size: 1 << 20, mem_buffer: null_mut(), no_alloc: false });
            let x = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 8);
            let y = ggml_map_custom1(ctx, x, Some(late), THREADS, null_mut());
            let graph = ggml_new_graph(ctx);
            ggml_build_forward_expand(graph, y);
            let mut plan = ggml_graph_plan(graph, THREADS, pool);
            let status = ggml_graph_compute(graph, &mut plan);
            ggml_free(ctx);
            status
        }
    });
    assert_eq!(status, Ok(GGML_STATUS_SUCCESS));
    let used = used() - before;
    // SAFETY: nothing uses the pool any more.
    guard(|| unsafe { ggml_threadpool_free(pool) }).unwrap();
    used
}

/// Runs this test again under a limit of address space that has room for the stacks of some threads only.
fn limited() {
    let test = std::env::current_exe().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -v 1000000; exec \"$0\" --nocapture"]).arg(test).env(CHILD, "1");
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}{}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn threads_that_wait_sleep_and_those_that_cannot_start_leave_none() {
    if std::env::var_os(CHILD).is_some() {
        let before = tasks().len();
        let caught = pool(MANY).unwrap_err();
        assert_eq!(caught.kind, CaughtKind::Assertion, "{caught}");
        assert_eq!(tasks().len(), before);
        return;
    }
    let used = used_while_waiting();
    assert!(used < NAP / 4, "three threads that waited {NAP:?} computed {used:?}");
    limited();
}
