//! Where in a file a weight is: tensors, and rows of them.

/// Which rows of a file's tensor are meant. Of a vector, which elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// One of `of` equal parts, counted from 0: halves, thirds of a fused matrix.
    Part {
        /// Which part.
        at: u8,
        /// How many parts there are.
        of: u8,
    },
    /// The columns of all of them: the file has the transpose of the matrix.
    Columns,
    /// Of a kernel over width, height and time, the last plane in time; of one without time, all.
    LastPlane,
    /// The plane in time of that number.
    Plane(u8),
    /// All of a kernel, each of whose outputs is a row.
    Flat,
}

impl Rows {
    /// The first half.
    pub const FIRST: Rows = Rows::Part { at: 0, of: 2 };
    /// The second half.
    pub const SECOND: Rows = Rows::Part { at: 1, of: 2 };

    /// The part and the number of parts; all rows are the only part.
    pub(in crate::bind) fn fraction(self) -> (usize, usize) {
        match self {
            Rows::All | Rows::Columns | Rows::LastPlane | Rows::Plane(_) | Rows::Flat => (0, 1),
            Rows::Part { at, of } => (at.into(), usize::from(of.max(1))),
        }
    }
}

/// A tensor in a file, or a part of it, that gives some rows of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The tensor's name in the file.
    pub name: String,
    /// Which of its rows.
    pub rows: Rows,
}

impl Part {
    /// All rows of `name`.
    pub fn all(name: impl Into<String>) -> Part {
        Part { name: name.into(), rows: Rows::All }
    }

    /// Plane number `at` of the kernel `name`.
    pub fn plane(name: impl Into<String>, at: usize) -> Part {
        Part { name: name.into(), rows: Rows::Plane(at as u8) }
    }

    /// The last plane of the kernel `name`.
    pub fn last_plane(name: impl Into<String>) -> Part {
        Part { name: name.into(), rows: Rows::LastPlane }
    }
}

/// The parts that make up a weight, one below the other.
pub type Alternative = Vec<Part>;

/// What most files have the weight `name` in, where that is one of several equal parts of a tensor: the tensor's name, and which part.
pub fn stacked(aliases: Aliases<'_>, name: &str) -> Option<(String, usize)> {
    let usual = aliases(name).into_iter().next()?;
    match &usual[..] {
        [Part { name, rows: Rows::Part { at, .. } }] => Some((name.clone(), (*at).into())),
        _ => None,
    }
}

/// For a canonical name, every way in which a file may hold the weight, most usual first. A model's configuration may decide.
pub type Aliases<'a> = &'a dyn Fn(&str) -> Vec<Alternative>;
