//! Which known name a written one could have been meant to be.

/// The known names, the one that was likely meant first.
pub(super) fn suggestion(given: &str, known: &[&str]) -> String {
    match nearest(given, known) {
        Some(nearest) => format!("did you mean \"{nearest}\"? known here: {}", known.join(", ")),
        None if known.is_empty() => "nothing can stand here".to_owned(),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// The known name that `given` is likely a slip of.
pub(super) fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let nearest = known.iter().min_by_key(|name| distance(given, name))?;
    (distance(given, nearest) <= 2 + given.len() / 4).then_some(nearest)
}

/// Whether the two differ so little that what follows `given` was surely written for `known`.
pub(super) fn is_slip(given: &str, known: &str) -> bool {
    distance(given, known) <= known.len() / 4
}

/// Levenshtein distance, letters compared without case.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().flat_map(char::to_lowercase).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, letter) in left.chars().flat_map(char::to_lowercase).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, other) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_letters_put_in_left_out_and_changed() {
        for (left, right, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("hostname", "hostName", 0),
            ("prot", "port", 2),
            ("tls", "sas", 2),
        ] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
        }
    }

    #[test]
    fn a_slip_is_nearer_than_a_guess() {
        let known = ["hostName", "port", "tls"];
        assert_eq!(nearest("hostnam", &known), Some("hostName"));
        assert!(is_slip("hostnam", "hostName") && !is_slip("tos", "tls"));
        assert_eq!(nearest("somethingElse", &known), None);
        assert_eq!(nearest("port", &[]), None);
    }
}
