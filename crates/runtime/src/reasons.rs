//! Reasons and limits: kinds of things that metrics and logs call by a name, and README explains.

/// Makes an enum of kinds with their names in metrics and logs. Its `ALL` is for tests.
#[macro_export]
macro_rules! named {
    (
        $(#[$meta:meta])*
        $vis:vis enum $kind:ident {
            $($(#[$about:meta])* $variant:ident = $name:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $kind {
            $($(#[$about])* $variant,)*
        }

        impl $kind {
            /// Every one of them.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in metrics and logs.
            #[must_use]
            $vis fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

/// The names that the first table after this text explains, which has one in each row's first column; `None`: there is no
/// such text, or a name is there twice.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn explained<'a>(readme: &'a str, after: &str) -> Option<std::collections::BTreeSet<&'a str>> {
    let (_, table) = readme.split_once(after)?;
    let rows = table.lines().skip_while(|line| !line.starts_with('|'));
    let mut rows = rows.take_while(|line| line.starts_with('|'));
    let mut names = std::collections::BTreeSet::new();
    let name = |row: &'a str| row.strip_prefix("| `")?.split('`').next();
    rows.all(|row| name(row).is_none_or(|name| names.insert(name)))
        .then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_table_are_found_and_one_that_is_there_twice() {
        let text =
            "Of `it`, of\n\n| `reason` | |\n|---|---|\n| `a_b` | `c` |\n| `d` | |\n\n| `e` | |\n";
        let names = explained(text, "Of `it`").expect("it is there");
        assert_eq!(names, ["a_b", "d", "reason"].into());
        assert_eq!(explained(text, "Of `that`"), None);
        let twice = text.replace("`d`", "`a_b`");
        assert_eq!(explained(&twice, "Of `it`"), None);
    }
}
