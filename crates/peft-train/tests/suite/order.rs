//! The order of rows.

use peft_train::data::BatchOrder;

fn take(rows: usize, batch_size: usize, seed: Option<u64>, first: u64, count: usize) -> Vec<Vec<usize>> {
    BatchOrder::new(rows, batch_size, seed).unwrap().batches_from(first).take(count).collect()
}

#[test]
fn file_order_repeats_with_a_short_batch_at_the_end_of_each_epoch() {
    assert_eq!(take(5, 2, None, 0, 4), [vec![0, 1], vec![2, 3], vec![4], vec![0, 1]]);
    assert_eq!(take(2, 5, None, 0, 2), [[0, 1], [0, 1]]);
}

#[test]
fn every_epoch_visits_every_row_once_in_its_own_order() {
    let batches = take(10, 3, Some(7), 0, 12);
    let epochs: Vec<Vec<usize>> = batches.chunks(4).map(|epoch| epoch.concat()).collect();
    for epoch in &epochs {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    assert_ne!(take(10, 3, Some(8), 0, 12), batches);
}

#[test]
fn any_batch_can_be_the_first() {
    let all = take(7, 2, Some(3), 0, 20);
    for first in 0..20 {
        assert_eq!(take(7, 2, Some(3), first as u64, 20 - first), all[first..]);
    }
}

/// Changing the order would make old runs unrepeatable.
#[test]
fn the_order_of_a_seed_is_fixed_for_good() {
    assert_eq!(take(8, 8, Some(42), 0, 2), [[5, 3, 2, 6, 7, 4, 0, 1], [1, 2, 3, 7, 6, 5, 4, 0]]);
}

#[test]
fn positions_are_drawn_evenly() {
    let (rows, epochs) = (4, 24_000);
    let mut counts = vec![vec![0usize; rows]; rows];
    for epoch in take(rows, rows, Some(1), 0, epochs) {
        for (position, row) in epoch.into_iter().enumerate() {
            counts[position][row] += 1;
        }
    }
    // 6000 expected with a standard deviation of 67: five of those either way.
    for count in counts.concat() {
        assert!(count.abs_diff(epochs / rows) < 335, "{count}");
    }
}

#[test]
fn no_rows_and_no_batch_are_refused() {
    assert!(BatchOrder::new(0, 1, None).is_err());
    assert!(BatchOrder::new(1, 0, None).unwrap_err().to_string().contains("batch_size"));
}
