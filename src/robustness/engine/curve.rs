//! Whether an ascent had arrived when its steps ran out.

/// The highest loss so far, point by point.
#[derive(Debug, Clone, Default)]
pub struct Curve(Vec<f64>);

impl Curve {
    /// Shorter curves have no shape.
    const SHORTEST: usize = 10;
    /// A curve whose last tenth brings more than this share of its whole rise has not arrived (Pintor et al. 2022,
    /// "Indicators of Attack Failure", on the last ten of many steps).
    const STILL_RISING: f64 = 0.05;

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The highest losses, to be taken up again by [`resumed`](Self::resumed).
    pub fn losses(&self) -> &[f64] {
        &self.0
    }

    pub fn resumed(losses: Vec<f64>) -> Self {
        Self(losses)
    }

    /// A loss that is no number raises nothing.
    pub fn note(&mut self, loss: f64) {
        let highest = self.0.last().copied().unwrap_or(f64::NEG_INFINITY);
        self.0.push(highest.max(loss));
    }

    /// `None` where there is too little to tell.
    pub fn still_rises(&self) -> Option<bool> {
        let points = self.0.len();
        if points < Self::SHORTEST {
            return None;
        }
        let rise = |from: usize| self.0[points - 1] - self.0[from];
        Some(rise(points - 1 - points / 10) > Self::STILL_RISING * rise(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rises(loss: impl Fn(f64) -> f64) -> Option<bool> {
        let mut curve = Curve::default();
        (0..=100).for_each(|step| curve.note(loss(f64::from(step) / 100.0)));
        curve.still_rises()
    }

    #[test]
    fn a_curve_that_has_arrived_is_told_from_one_that_has_not() {
        assert_eq!(rises(|x| 1.0 - (-8.0 * x).exp()), Some(false));
        assert_eq!(rises(|x| x), Some(true));
        assert_eq!(rises(|_| 2.0), Some(false));
        // What lies below the highest point so far is no rise, however it moves.
        assert_eq!(rises(|x| if x == 0.1 { 1.0 } else { x / 2.0 }), Some(false));
        assert_eq!(rises(|x| if x < 0.5 { x } else { f64::NAN }), Some(false));
    }

    #[test]
    fn a_short_curve_says_nothing() {
        let mut curve = Curve::default();
        (0..9).for_each(|step| curve.note(f64::from(step)));
        assert_eq!(curve.still_rises(), None);
        curve.note(9.0);
        assert_eq!(curve.still_rises(), Some(true));
        curve.clear();
        assert_eq!(curve.still_rises(), None);
    }
}
