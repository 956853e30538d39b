//! Modules import only from those above them in the table of `src/lib.rs`.

use super::graph::Edge;

/// A module that imports from one below it, and why it may.
pub(crate) const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// The modules of a table in a crate's documentation, lowest first: lines that begin with ``//! | [`name`] |``.
pub(crate) fn table(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| Some(line.strip_prefix("//! | [`")?.split_once("`] |")?.0.to_owned())).collect()
}

/// What is wrong with the table of `lib`, whose text this is: each module has one line.
pub(crate) fn unlisted(lib: &str) -> Vec<String> {
    let listed = table(lib);
    let declared: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ").or(line.strip_prefix("mod "))?.strip_suffix(';'))
        .collect();
    let mut wrong = Vec::new();
    for module in &declared {
        match listed.iter().filter(|name| name == module).count() {
            1 => {}
            0 => wrong
                .push(format!("src/lib.rs: the table of modules has no line for `{module}`: add it where it belongs")),
            _ => wrong.push(format!("src/lib.rs: the table of modules has several lines for `{module}`")),
        }
    }
    for name in listed.iter().filter(|name| !declared.contains(&name.as_str())) {
        wrong.push(format!("src/lib.rs: the table of modules has a line for `{name}`, which is no module"));
    }
    wrong
}

/// What is wrong with the imports between modules, in the order of `table`.
pub(crate) fn upward(edges: &[Edge], table: &[String], exceptions: &[(&str, &str, &str)]) -> Vec<String> {
    let place = |file: &str| table.iter().position(|name| name == module(file));
    let mut wrong = Vec::new();
    let mut needed = vec![false; exceptions.len()];
    for edge in edges {
        let Some((from, to)) = place(&edge.from).zip(place(&edge.to)) else { continue };
        let (user, used) = (module(&edge.from), module(&edge.to));
        if to <= from {
            continue;
        }
        match exceptions.iter().position(|(from, to, _)| (*from, *to) == (user, used)) {
            Some(exception) => needed[exception] = true,
            None => wrong.push(format!(
                "src/{}:{}: `{}`: `{user}` may not import from `{used}`, which stands below it in the table of src/lib.rs. \
                 Move what both need to a module above them, or pass it as an argument",
                edge.from, edge.line, edge.path
            )),
        }
    }
    for ((from, to, _), needed) in exceptions.iter().zip(needed) {
        if !needed {
            wrong.push(format!("tests/layers/order.rs: `{from}` no longer imports from `{to}`: remove the exception"));
        }
    }
    wrong
}

/// The top module that a file belongs to.
fn module(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

#[cfg(test)]
mod tests {
    use super::super::graph::Crate;
    use super::*;

    const LIB: &str = "//! | [`low`] | one |\n//! | [`high`] | two |\npub mod high;\npub mod low;\n";

    #[test]
    fn the_table_has_a_line_for_each_module() {
        assert_eq!(table(LIB), ["low", "high"]);
        assert!(unlisted(LIB).is_empty());
        let wrong = unlisted(&format!("{LIB}mod other;\n//! | [`gone`] | |\n"));
        assert_eq!(wrong.len(), 2);
        assert!(
            wrong[0].contains("no line for `other`") && wrong[1].contains("`gone`, which is no module"),
            "{wrong:?}"
        );
    }

    #[test]
    fn imports_from_below_are_wrong() {
        let files = [
            ("lib.rs", LIB),
            ("low.rs", "pub struct A;\nfn f() { crate::high::g() }"),
            ("high/mod.rs", "use crate::low::A;\npub fn g() {}"),
            ("high/more.rs", "use crate::low::A;"),
        ];
        let edges = Crate::read(files).edges();
        let wrong = upward(&edges, &table(LIB), &[]);
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].starts_with("src/low.rs:2: `crate::high::g`: `low` may not import from `high`"), "{wrong:?}");
        assert!(upward(&edges, &table(LIB), &[("low", "high", "")]).is_empty());
        let wrong = upward(&edges, &table(LIB), &[("low", "high", ""), ("high", "low", "")]);
        assert!(wrong[0].contains("`high` no longer imports from `low`"), "{wrong:?}");
    }

    #[test]
    fn a_module_as_a_whole_counts() {
        let files = [("lib.rs", LIB), ("low.rs", "use crate::high;"), ("high.rs", "")];
        assert_eq!(upward(&Crate::read(files).edges(), &table(LIB), &[]).len(), 1);
    }
}
