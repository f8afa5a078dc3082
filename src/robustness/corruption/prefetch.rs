//! An ordered parallel map that runs a bounded distance ahead of its consumer.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, PoisonError};

/// Items that worker threads make ahead of whoever takes them.
pub struct Prefetch<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    items: usize,
    /// Items that may exist, or be in the making, before they are taken.
    window: usize,
}

struct State<T> {
    /// The next item that nobody makes yet.
    next: usize,
    /// Items taken.
    taken: usize,
    made: HashMap<usize, T>,
    /// Nobody wants the rest, or a worker panicked.
    over: bool,
}

/// Calls `consume` with items 0..`items` coming from `make`, in order, while `threads` threads make at most `window` of them
/// ahead. Order, `threads` and `window` do not change what `make` is called with. A panic of `make` becomes one of this call.
pub fn prefetched<T: Send, R>(
    items: usize,
    threads: usize,
    window: usize,
    make: impl Fn(usize) -> T + Sync,
    consume: impl FnOnce(&Prefetch<T>) -> R,
) -> R {
    let window = window.max(1);
    let state = State { next: 0, taken: 0, made: HashMap::with_capacity(window), over: false };
    let prefetch = Prefetch { state: Mutex::new(state), changed: Condvar::new(), items, window };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.max(1)) {
            scope.spawn(|| {
                let _over_if_it_panics = Over { of: &prefetch, always: false };
                while let Some(item) = prefetch.claim() {
                    let made = make(item);
                    prefetch.lock().made.insert(item, made);
                    prefetch.changed.notify_all();
                }
            });
        }
        // Also when the consumer leaves early: the workers must not wait for it.
        let _over = Over { of: &prefetch, always: true };
        consume(&prefetch)
    })
}

impl<T> Prefetch<T> {
    /// The next item, once it is made. Panics past the last one, and when the worker that made it panicked.
    pub fn take(&self) -> T {
        let mut state = self.lock();
        let item = state.taken;
        assert!(item < self.items, "only {} items", self.items);
        loop {
            if let Some(made) = state.made.remove(&item) {
                state.taken += 1;
                self.changed.notify_all();
                return made;
            }
            assert!(!state.over, "a worker thread panicked");
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn claim(&self) -> Option<usize> {
        let mut state = self.lock();
        while !state.over && state.next < self.items && state.next >= state.taken + self.window {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let item = state.next;
        let wanted = !state.over && item < self.items;
        state.next += usize::from(wanted);
        wanted.then_some(item)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a prefetch when dropped: always, or while panicking.
struct Over<'a, T> {
    of: &'a Prefetch<T>,
    always: bool,
}

impl<T> Drop for Over<'_, T> {
    fn drop(&mut self) {
        if self.always || std::thread::panicking() {
            self.of.lock().over = true;
            self.of.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn items_come_in_order_and_never_further_ahead_than_the_window() {
        for (threads, window) in [(1, 1), (4, 3), (8, 100)] {
            let (made, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let make = |i: usize| {
                made.fetch_add(1, Ordering::SeqCst);
                i * i
            };
            prefetched(200, threads, window, make, |items| {
                for i in 0..200 {
                    assert_eq!(items.take(), i * i);
                    most.fetch_max(made.load(Ordering::SeqCst) - i, Ordering::SeqCst);
                }
            });
            // The item just taken makes room for one more.
            assert!(most.into_inner() <= window + 1, "{threads} threads, window {window}");
        }
    }

    #[test]
    fn a_consumer_may_leave_early_and_a_panic_is_passed_on() {
        assert_eq!(prefetched(1000, 4, 2, |i| i, |items| items.take() + items.take()), 1);
        let panic = std::panic::catch_unwind(|| {
            prefetched(5, 2, 1, |i| assert!(i < 2, "no third"), |items| (0..5).for_each(|_| items.take()))
        });
        assert!(panic.is_err());
    }
}
