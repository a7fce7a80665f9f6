//! Numbered message ids in little memory: which numbers came, which twice, which late.

/// Ranges kept per prefix; beyond it the oldest two merge and the gap between them counts as `forgotten_gaps`.
const RANGES_MAX: usize = 256;

/// The numbers of one prefix: `boot7-1`, `boot7-2`, … have the prefix `boot7-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Text before the number.
    pub prefix: Box<str>,
    /// Numbers seen, as ascending inclusive ranges that do not touch.
    pub ranges: Vec<(u64, u64)>,
    /// Numbers seen again.
    pub duplicates: u64,
    /// New numbers that came after a higher one.
    pub out_of_order: u64,
    /// Numbers in gaps that were closed to save memory: unknown whether they came.
    pub forgotten_gaps: u64,
}

impl Sequence {
    /// No numbers yet.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), ranges: Vec::new(), duplicates: 0, out_of_order: 0, forgotten_gaps: 0 }
    }

    /// Splits an id into prefix and number; `None` if it does not end in digits.
    pub fn split(id: &str) -> Option<(&str, u64)> {
        let digits = id.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = id.split_at(id.len() - digits);
        number.parse().ok().map(|number| (prefix, number))
    }

    /// One more number.
    pub fn add(&mut self, number: u64) {
        match self.ranges.last_mut() {
            // the usual case: the next one
            Some((_, last)) if *last + 1 == number => *last = number,
            Some((_, last)) if *last >= number => self.add_below(number),
            _ => self.ranges.push((number, number)),
        }
        if self.ranges.len() > RANGES_MAX {
            let (first, _) = self.ranges.remove(0);
            self.forgotten_gaps += self.ranges[0].0 - first;
            self.ranges[0].0 = first;
        }
    }

    /// Different numbers seen.
    pub fn distinct(&self) -> u64 {
        self.ranges.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Numbers between the lowest and the highest seen that did not come.
    pub fn missing(&self) -> u64 {
        match (self.ranges.first(), self.ranges.last()) {
            (Some((first, _)), Some((_, last))) => last - first + 1 - self.distinct(),
            _ => 0,
        }
    }

    fn add_below(&mut self, number: u64) {
        let at = self.ranges.partition_point(|(_, last)| *last < number);
        if self.ranges[at].0 <= number {
            self.duplicates += 1;
            return;
        }
        self.out_of_order += 1;
        let joins_above = self.ranges[at].0 == number + 1;
        let joins_below = at > 0 && self.ranges[at - 1].1 + 1 == number;
        match (joins_below, joins_above) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = number,
            (false, true) => self.ranges[at].0 = number,
            (false, false) => self.ranges.insert(at, (number, number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn check(numbers: &[u64], ranges: &[(u64, u64)], duplicates: u64, out_of_order: u64, missing: u64) {
        let mut sequence = Sequence::new("");
        for number in numbers {
            sequence.add(*number);
        }
        assert_eq!(sequence.ranges, ranges, "{numbers:?}");
        assert_eq!(
            (sequence.duplicates, sequence.out_of_order, sequence.missing()),
            (duplicates, out_of_order, missing)
        );
    }

    #[test]
    fn lost_duplicated_and_late_numbers_are_told_apart() {
        check(&[], &[], 0, 0, 0);
        check(&[1, 2, 3], &[(1, 3)], 0, 0, 0);
        check(&[1, 2, 4], &[(1, 2), (4, 4)], 0, 0, 1);
        check(&[1, 2, 2, 1, 3], &[(1, 3)], 2, 0, 0);
        check(&[1, 3, 2], &[(1, 3)], 0, 1, 0);
        check(&[5, 9, 7], &[(5, 5), (7, 7), (9, 9)], 0, 1, 2);
        check(&[5, 9, 8, 6], &[(5, 6), (8, 9)], 0, 2, 1);
    }

    #[test]
    fn a_number_is_what_stands_at_the_end() {
        for (id, expected) in [
            ("boot7-12", Some(("boot7-", 12))),
            ("12", Some(("", 12))),
            ("x", None),
            ("", None),
            ("a-99999999999999999999", None),
        ] {
            assert_eq!(Sequence::split(id), expected, "{id}");
        }
    }

    proptest! {
        #[test]
        fn ranges_hold_exactly_the_numbers_added(numbers in prop::collection::vec(0_u64..200, 0..300)) {
            let mut sequence = Sequence::new("");
            for number in &numbers {
                sequence.add(*number);
            }
            let held: Vec<u64> = sequence.ranges.iter().flat_map(|(first, last)| *first..=*last).collect();
            let distinct: BTreeSet<u64> = numbers.iter().copied().collect();
            prop_assert_eq!(held, distinct.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(sequence.duplicates, (numbers.len() - distinct.len()) as u64);
        }
    }
}
