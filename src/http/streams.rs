//! How many of something that lasts an owner has open, in this process: streams of events, pieces being sent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Most streams of events that one owner may have open.
pub const MOST: usize = 100;
/// Most pieces of uploads that one owner may be sending; each holds some memory.
pub const MOST_PIECES: usize = 8;
/// Most uploads of one owner that are being put together; each takes its size on disk once more.
pub const MOST_JOINS: usize = 1;

#[derive(Clone)]
pub struct Streams {
    most: usize,
    open: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

/// A place among an owner's streams, for as long as it is kept.
pub struct Place {
    streams: Streams,
    owner: Arc<str>,
}

impl Streams {
    pub fn new(most: usize) -> Self {
        Self { most, open: Arc::default() }
    }

    /// `None` when all of the owner's places are taken.
    pub fn enter(&self, owner: &Arc<str>) -> Option<Place> {
        let mut open = self.open.lock().expect("no holder panics");
        let count = open.entry(owner.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { streams: self.clone(), owner: owner.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock().expect("no holder panics");
        if let Some(count) = open.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_left_is_free_again() {
        let (streams, a, b) = (Streams::new(MOST), Arc::from("a"), Arc::from("b"));
        let mut held: Vec<Place> = (0..MOST).map(|_| streams.enter(&a).unwrap()).collect();
        assert!(streams.enter(&a).is_none());
        assert!(streams.enter(&b).is_some());
        held.pop();
        assert!(streams.enter(&a).is_some());
        held.clear();
        assert!(streams.open.lock().unwrap().is_empty());
    }
}
