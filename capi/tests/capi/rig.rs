//! Compiling and running C.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::{env, fs};

/// What C tests are compiled with: the oldest standard, and no warning.
pub(crate) const STRICT: &[&str] = &["-std=c99", "-g", "-Wall", "-Wextra", "-pedantic", "-Werror"];

/// The repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository is there")
}

/// The miniature as a file.
pub(crate) fn bundle() -> PathBuf {
    root().join("models/mini/mini.gguf")
}

/// Where Cargo puts the libraries that these tests are linked with: beside them.
fn built() -> PathBuf {
    let this = env::current_exe().expect("a test has a path");
    this.parent().expect("a file is in a folder").to_owned()
}

/// `target/release`, or that of another profile.
pub(crate) fn profile_dir() -> PathBuf {
    built().parent().expect("deps is in the profile's folder").to_owned()
}

/// An empty folder of this name.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("the folder for temporary files is writable");
    folder
}

/// A prefix with the library installed by the documented command.
pub(crate) fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = folder("prefix");
        let mut install = Command::new(root().join("scripts/install"));
        run(install.arg("--prefix").arg(&prefix).arg("--from").arg(built()));
        prefix
    })
}

/// Whether programs run under a memory checker.
pub(crate) fn is_checked() -> bool {
    env::var_os("PINHOLE_C_FLAGS").is_some() || env::var_os("PINHOLE_C_RUNNER").is_some()
}

/// Whether that is Valgrind, which takes thirty times as long.
pub(crate) fn is_slow() -> bool {
    env::var_os("PINHOLE_C_RUNNER").is_some()
}

/// Says that a test is left out under a memory checker, and whether it is.
pub(crate) fn left_out(why: &str) -> bool {
    if is_checked() {
        eprintln!("left out under a memory checker: {why}");
    }
    is_checked()
}

/// Whether this machine has `tool`. Where `PINHOLE_C_TOOLS` is set, as in CI, it must.
pub(crate) fn has(tool: &str) -> bool {
    let found = env::var_os("PINHOLE_C_TOOLS").is_some() || Command::new(tool).arg("--version").output().is_ok();
    if !found {
        eprintln!("left out: there is no {tool} here");
    }
    found
}

/// Runs `command`, which must succeed.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    output
}

/// What pkg-config says of the installed library.
pub(crate) fn pkg_config(flags: &[&str]) -> Vec<String> {
    if !has("pkg-config") {
        // What it says where it is.
        let (include, libraries) = (prefix().join("include"), prefix().join("lib"));
        return vec![format!("-I{}", include.display()), format!("-L{}", libraries.display()), "-lpinhole".into()];
    }
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")).args(flags).arg("pinhole");
    let output = run(&mut command);
    String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
}

/// A compiler with the flags of a memory checker.
pub(crate) fn compiler() -> Command {
    // It may be several words: `ccache cc`.
    let compiler = env::var("CC").unwrap_or("cc".to_owned());
    let mut words = compiler.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("cc"));
    command.args(words).args(STRICT);
    command.args(env::var("PINHOLE_C_FLAGS").unwrap_or_default().split_whitespace());
    command
}

/// Compiles `source` into a program of that name, linked with the installed shared library.
pub(crate) fn compile(source: &Path) -> PathBuf {
    let program = prefix().join(source.file_stem().expect("a source has a name"));
    let mut command = compiler();
    command.arg(source).arg("-o").arg(&program).args(pkg_config(&["--cflags", "--libs"])).args(["-pthread", "-lm"]);
    run(&mut command);
    program
}

/// `program`, under a memory checker where there is one, with the installed library.
pub(crate) fn command(program: &Path) -> Command {
    let runner = env::var("PINHOLE_C_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let mut command = match words.next() {
        Some(runner) => {
            let mut command = Command::new(runner);
            command.args(words).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.env("LD_LIBRARY_PATH", prefix().join("lib"));
    command
}

/// Compiles and runs one of `capi/tests/c`, which must say nothing: neither does the library.
pub(crate) fn c_test<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) {
    let program = compile(&root().join("capi/tests/c").join(name).with_extension("c"));
    let output = run(command(&program).args(arguments));
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(out.is_empty() && err.is_empty(), "{name} printed:\n{out}\n{err}");
}
