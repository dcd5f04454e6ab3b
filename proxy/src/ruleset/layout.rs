//! A list of endpoints in slots, from which packets draw.
//!
//! A list has 2^class slots, at least as many as endpoints. A draw that meets an empty slot is repeated, which stays
//! uniform. An endpoint that comes or goes is one slot; the class changes when the list is full, or less than half
//! full. Slot 0 is never empty while
//! there are endpoints: it is the last resort.

use super::element::LARGEST_CLASS;
use std::net::SocketAddr;

/// Endpoints in their slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots {
    class: u32,
    slots: Vec<Option<SocketAddr>>,
}

/// The smallest class that holds so many.
fn class_for(count: usize) -> u32 {
    count
        .max(1)
        .next_power_of_two()
        .trailing_zeros()
        .min(LARGEST_CLASS)
}

fn drop_empty_end(slots: &mut Vec<Option<SocketAddr>>) {
    while slots.last() == Some(&None) {
        slots.pop();
    }
}

impl Slots {
    /// The slots after a change to `wanted` (sorted, no doubles). Endpoints that stay keep their slots, unless the
    /// class shrinks below them. Endpoints past what the largest class holds are left out.
    pub fn deal(&self, wanted: &[SocketAddr]) -> Slots {
        let wanted = &wanted[..wanted.len().min(1 << LARGEST_CLASS)];
        let fits = wanted.len() <= 1 << self.class;
        let sparse = self.class > 1 && wanted.len() < (1 << self.class) / 2;
        let class = if !fits || sparse {
            class_for(wanted.len())
        } else {
            self.class
        };
        let kept = |slot: &Option<SocketAddr>| {
            slot.filter(|address| wanted.binary_search(address).is_ok())
        };
        let mut slots: Vec<Option<SocketAddr>> =
            self.slots.iter().take(1 << class).map(kept).collect();
        let mut present: Vec<SocketAddr> = slots.iter().flatten().copied().collect();
        present.sort_unstable();
        let mut arrivals = wanted
            .iter()
            .copied()
            .filter(|address| present.binary_search(address).is_err());
        for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
            *slot = arrivals.next();
        }
        slots.extend(arrivals.map(Some));
        drop_empty_end(&mut slots);
        if slots.first() == Some(&None) {
            slots[0] = slots.pop().flatten();
            drop_empty_end(&mut slots);
        }
        slots.shrink_to_fit();
        Slots { class, slots }
    }

    /// The slots as they were found in the kernel; `None` if they don't hold together.
    pub fn adopt(class: u32, found: &[(u32, SocketAddr)]) -> Option<Slots> {
        let size = 1usize << class.min(LARGEST_CLASS);
        let mut slots = vec![
            None;
            found
                .iter()
                .map(|(slot, _)| *slot as usize + 1)
                .max()
                .unwrap_or(0)
        ];
        if slots.len() > size {
            return None;
        }
        for (slot, address) in found {
            slots[*slot as usize] = Some(*address);
        }
        Some(Slots { class, slots })
    }

    /// A draw is from 0 to 2^class - 1.
    pub fn class(&self) -> u32 {
        self.class
    }

    /// The filled slots.
    pub fn filled(&self) -> impl Iterator<Item = (u32, SocketAddr)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(slot, address)| Some((slot as u32, (*address)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses(lasts: &[u16]) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = lasts
            .iter()
            .map(|port| SocketAddr::from(([10, 0, 0, 1], *port)))
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    fn changed(before: &Slots, after: &Slots) -> usize {
        let before: std::collections::BTreeSet<_> = before.filled().collect();
        let after: std::collections::BTreeSet<_> = after.filled().collect();
        before.symmetric_difference(&after).count()
    }

    #[test]
    fn an_endpoint_that_comes_or_goes_is_one_slot() {
        let three = Slots::default().deal(&addresses(&[1, 2, 3]));
        assert_eq!(three.class(), 2);
        let four = three.deal(&addresses(&[1, 2, 3, 4]));
        assert_eq!((four.class(), changed(&three, &four)), (2, 1));
        let gone = four.deal(&addresses(&[1, 3, 4]));
        assert_eq!((gone.class(), changed(&four, &gone)), (2, 1));
    }

    #[test]
    fn a_larger_class_moves_no_endpoint() {
        let two = Slots::default().deal(&addresses(&[1, 2]));
        let five = two.deal(&addresses(&[1, 2, 3, 4, 5]));
        assert_eq!((two.class(), five.class(), changed(&two, &five)), (1, 3, 3));
    }

    #[test]
    fn one_and_two_endpoints_share_a_class_once_there_were_two() {
        let two = Slots::default()
            .deal(&addresses(&[1]))
            .deal(&addresses(&[1, 2]));
        assert_eq!(two.class(), 1);
        assert_eq!(two.deal(&addresses(&[2])).class(), 1);
    }

    proptest! {
        #[test]
        fn slots_hold_what_is_wanted_and_slot_zero_is_filled(steps in proptest::collection::vec(
            proptest::collection::vec(1u16..60, 0..40), 1..12))
        {
            let mut slots = Slots::default();
            for step in steps {
                let wanted = addresses(&step);
                slots = slots.deal(&wanted);
                let mut held: Vec<SocketAddr> = slots.filled().map(|(_, address)| address).collect();
                held.sort_unstable();
                prop_assert_eq!(&held, &wanted);
                prop_assert!(wanted.is_empty() || slots.filled().any(|(slot, _)| slot == 0));
                prop_assert!(slots.filled().all(|(slot, _)| slot < 1 << slots.class()));
                prop_assert!(slots.class() <= 1 || wanted.len() * 2 >= 1 << slots.class());
            }
        }
    }
}
