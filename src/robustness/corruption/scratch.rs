//! Working memory that a thread keeps: large buffers given back to the system cost more to get again than the kernels they serve.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use super::warp::Pixel;

thread_local! {
    static DOUBLES: RefCell<Vec<Vec<f64>>> = const { RefCell::new(Vec::new()) };
    static SINGLES: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
    static PIXELS: RefCell<Vec<Vec<Pixel>>> = const { RefCell::new(Vec::new()) };
}

/// What buffers are made of: types that know their thread's store.
pub trait Cell: Copy + Default + 'static {
    fn with_store<R>(work: impl FnOnce(&RefCell<Vec<Vec<Self>>>) -> R) -> R;
}

impl Cell for f64 {
    fn with_store<R>(work: impl FnOnce(&RefCell<Vec<Vec<Self>>>) -> R) -> R {
        DOUBLES.with(work)
    }
}

impl Cell for f32 {
    fn with_store<R>(work: impl FnOnce(&RefCell<Vec<Vec<Self>>>) -> R) -> R {
        SINGLES.with(work)
    }
}

impl Cell for Pixel {
    fn with_store<R>(work: impl FnOnce(&RefCell<Vec<Vec<Self>>>) -> R) -> R {
        PIXELS.with(work)
    }
}

/// A buffer of zeros, returned to its thread's store when dropped.
pub struct Scratch<T: Cell>(Vec<T>);

impl<T: Cell> Scratch<T> {
    pub fn zeros(len: usize) -> Self {
        let mut buffer = T::with_store(|store| store.borrow_mut().pop()).unwrap_or_default();
        buffer.clear();
        buffer.resize(len, T::default());
        Self(buffer)
    }
}

impl<T: Cell> Drop for Scratch<T> {
    fn drop(&mut self) {
        T::with_store(|store| store.borrow_mut().push(std::mem::take(&mut self.0)));
    }
}

impl<T: Cell> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Cell> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_clean() {
        let address = {
            let mut buffer = Scratch::<f64>::zeros(100);
            buffer.fill(7.0);
            buffer.as_ptr()
        };
        let again = Scratch::<f64>::zeros(50);
        assert_eq!(again.as_ptr(), address);
        assert!(again.iter().all(|&v| v == 0.0) && again.len() == 50);
    }
}
