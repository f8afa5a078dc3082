//! How many streams of events an owner has open, in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Most that one owner may have open.
pub const MOST: usize = 100;

#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<HashMap<Arc<str>, usize>>>);

/// A place among an owner's streams, for as long as it is kept.
pub struct Place {
    streams: Streams,
    owner: Arc<str>,
}

impl Streams {
    /// `None` when all of the owner's places are taken.
    pub fn enter(&self, owner: &Arc<str>) -> Option<Place> {
        let mut open = self.0.lock().expect("no holder panics");
        let count = open.entry(owner.clone()).or_default();
        if *count >= MOST {
            return None;
        }
        *count += 1;
        Some(Place { streams: self.clone(), owner: owner.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock().expect("no holder panics");
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
        let (streams, a, b) = (Streams::default(), Arc::from("a"), Arc::from("b"));
        let mut held: Vec<Place> = (0..MOST).map(|_| streams.enter(&a).unwrap()).collect();
        assert!(streams.enter(&a).is_none());
        assert!(streams.enter(&b).is_some());
        held.pop();
        assert!(streams.enter(&a).is_some());
        held.clear();
        assert!(streams.0.lock().unwrap().is_empty());
    }
}
