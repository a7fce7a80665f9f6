//! One number shared out among cores: exact in sum, in proportion to what each has.

/// `count` in shares proportional to `weights`: they add up to `count`, or to all the weights if that is less, and none is above
/// its weight. What does not divide goes to the largest remainders, the first of equal ones first.
pub fn share(count: u64, weights: &[u64]) -> Vec<u64> {
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let count = u128::from(count).min(total);
    if count == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: &u64| u128::from(*weight) * count;
    let mut shares: Vec<u64> = weights.iter().map(|weight| (exact(weight) / total) as u64).collect();
    let mut left = count - shares.iter().map(|share| u128::from(*share)).sum::<u128>();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|index| std::cmp::Reverse(exact(&weights[*index]) % total));
    for index in by_remainder {
        if left == 0 {
            break;
        }
        // a remainder above zero means that the share is below its weight
        shares[index] += 1;
        left -= 1;
    }
    shares
}

/// `count` in shares of `first`, and of `then` only what `first` has not: one share for each place, of both together.
pub fn share_in_turn(count: u64, first: &[u64], then: &[u64]) -> Vec<u64> {
    let mut shares = share(count, first);
    let left = count - shares.iter().sum::<u64>();
    for (share, more) in shares.iter_mut().zip(share(left, then)) {
        *share += more;
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{share, share_in_turn};

    #[test]
    fn the_second_are_asked_for_what_the_first_have_not() {
        let check = |count, first: &[u64], then: &[u64], expected: &[u64]| {
            assert_eq!(share_in_turn(count, first, then), expected, "{count} {first:?} {then:?}");
        };
        check(4, &[0, 4], &[4, 0], &[0, 4]);
        check(5, &[0, 4], &[4, 0], &[1, 4]);
        check(4, &[3, 5], &[9, 0], &[2, 2]);
        check(9, &[1, 1], &[1, 1], &[2, 2]);
        check(0, &[1, 1], &[1, 1], &[0, 0]);
    }

    #[test]
    fn shares_are_in_proportion() {
        let check = |count, weights: &[u64], expected: &[u64]| {
            assert_eq!(share(count, weights), expected, "{count} {weights:?}");
        };
        check(0, &[5, 5], &[0, 0]);
        check(1, &[5, 5], &[1, 0]);
        check(1, &[4, 5], &[0, 1]);
        check(10, &[30, 10], &[8, 2]);
        check(9, &[1, 2], &[1, 2]);
        check(3, &[0, 0], &[0, 0]);
        check(3, &[], &[]);
    }

    proptest! {
        #[test]
        fn shares_add_up_and_never_exceed_a_weight(count in 0_u64..5000, weights in prop::collection::vec(0_u64..2000, 0..9)) {
            let shares = share(count, &weights);
            prop_assert_eq!(shares.iter().sum::<u64>(), count.min(weights.iter().sum()));
            prop_assert!(shares.iter().zip(&weights).all(|(share, weight)| share <= weight));
        }
    }
}
