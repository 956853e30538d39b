//! Names the shared library: its soname changes only when programs have to be compiled again (see "Versions" in
//! include/pinhole.h).

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let soname = match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux" | "android" | "freebsd" | "netbsd" | "openbsd") => "-Wl,-soname,libpinhole.so.0",
        Ok("macos" | "ios") => "-Wl,-install_name,@rpath/libpinhole.0.dylib",
        _ => return,
    };
    println!("cargo::rustc-cdylib-link-arg={soname}");
}
