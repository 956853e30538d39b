//! Programs in C against an installed library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{
    bundle, c_test, command, compile, compiler, folder, has, is_slow, left_out, pkg_config, prefix, profile_dir, root,
    run,
};

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn bad_input_is_answered() {
    c_test("bad_input", [bundle(), folder("bad_input")]);
}

#[test]
fn requests_give_what_they_should() {
    c_test("requests", [bundle(), folder("requests")]);
}

/// Memory checkers take stack and address space of their own.
#[test]
fn little_stack_and_few_threads_are_enough_or_an_error() {
    if !left_out("it bounds stack and address space") {
        c_test("stack", [bundle(), folder("stack")]);
    }
}

#[test]
fn requests_stop_at_every_point() {
    let stride = if is_slow() { "17" } else { "1" };
    c_test("stops", [stride.to_owned(), text(&bundle()), text(&folder("stops"))]);
}

/// Each allocation fails once; every tenth where `PINHOLE_C_EVERY_POINT` is not set, as `.ci/capi` sets it. Two processes
/// share the points. Not under a memory checker: those have a malloc of their own.
#[test]
fn failed_allocations_are_errors() {
    if left_out("it brings its own malloc") {
        return;
    }
    let program = prefix().join("faults");
    let mut compile = Command::new("c++");
    compile.args(["-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror"]);
    compile.arg(root().join("capi/tests/c/faults.cpp")).arg("-o").arg(&program);
    run(compile.args(pkg_config(&["--cflags", "--libs"])).arg("-pthread"));
    let stride = if std::env::var_os("PINHOLE_C_EVERY_POINT").is_some() { "1" } else { "10" };
    let out = folder("faults");
    std::thread::scope(|scope| {
        for process in ["0", "1"] {
            let (program, out) = (&program, &out);
            scope.spawn(move || {
                let mut faults = command(program);
                let output = run(faults.arg(bundle()).arg(out).args([process, "2", stride]));
                println!("{}", String::from_utf8_lossy(&output.stdout));
            });
        }
    });
}

/// A stop takes no longer than a stage. The numbers of BENCHMARKS.md are what this prints for 128.
#[test]
fn stops_take_no_longer_than_a_stage() {
    if left_out("it measures time") {
        return;
    }
    let program = compile(&root().join("capi/tests/c/latency.c"));
    let output = run(command(&program).args(["20", "128"]));
    println!("{}", String::from_utf8_lossy(&output.stdout));
}

/// Its own ggml in a program that links libpinhole.a: that which pinhole's build made, under ggml's plain names.
#[test]
fn the_static_library_lives_beside_another_ggml() {
    let program = folder("two_ggmls").join("two_ggmls");
    let mut compile = compiler();
    compile.arg(root().join("capi/tests/c/two_ggmls.c")).arg("-I").arg(prefix().join("include"));
    compile.arg("-Wl,--whole-archive");
    compile.args(other_ggml()).arg("-Wl,--no-whole-archive");
    compile.arg(prefix().join("lib/libpinhole.a")).args(["-lstdc++", "-lpthread", "-ldl", "-lm", "-o"]);
    run(compile.arg(&program));
    run(&mut command(&program));
}

/// The core of ggml as plain static libraries, from Cargo's own build folder; with the allocator that it is built to call.
fn other_ggml() -> [PathBuf; 3] {
    let builds = fs::read_dir(profile_dir().join("build")).unwrap().map(|entry| entry.unwrap().path().join("out"));
    let names = ["libpinhole_ggml_base.a", "libpinhole_ggml_base_c.a", "libpinhole_ggml_account.a"];
    let libraries = builds.map(|out| names.map(|name| out.join(name)));
    let mut found: Vec<_> = libraries.filter(|three| three.iter().all(|file| file.exists())).collect();
    found.sort_by_key(|[first, ..]| fs::metadata(first).and_then(|file| file.modified()).ok());
    found.pop().expect("ggml was built")
}

#[test]
fn examples_run() {
    let out = folder("examples");
    let examples = root().join("examples/c");
    let [progress, threads] = ["progress.c", "threads.c"].map(|name| compile(&examples.join(name)));
    let heart = out.join("heart.png");
    if !is_slow() {
        let output = run(command(&progress).arg("a red heart").arg(&heart));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("decode") && told.contains("preview") && told.contains("done after"), "{told}");
        assert!(heart.exists());
        run(command(&threads).args([out.join("a.png"), out.join("b.png")]));
        assert!(out.join("a.png").exists() && out.join("b.png").exists());
    }
    let stopped = command(&progress).arg("a red heart").arg(out.join("none.png")).arg("0.05").output().unwrap();
    assert_eq!(stopped.status.code(), Some(2), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert!(!out.join("none.png").exists());
}

/// CMake's users find the library, too.
#[test]
fn cmake_finds_it() {
    if !has("cmake") || left_out("CMake's files are the same") {
        return;
    }
    let folder = folder("cmake");
    let lists = "cmake_minimum_required(VERSION 3.16)\nproject(user C CXX)\nfind_package(pinhole 0.1 REQUIRED)\n\
                 foreach(kind pinhole static)\n  add_executable(user_${kind} minimal.c)\n  \
                 target_link_libraries(user_${kind} pinhole::${kind})\nendforeach()\n";
    fs::write(folder.join("CMakeLists.txt"), lists).unwrap();
    fs::copy(root().join("examples/c/minimal.c"), folder.join("minimal.c")).unwrap();
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(&folder).arg("-B").arg(folder.join("build"));
    run(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display())));
    run(Command::new("cmake").arg("--build").arg(folder.join("build")));
    for kind in ["pinhole", "static"] {
        assert!(folder.join("build").join(format!("user_{kind}")).exists());
    }
}
