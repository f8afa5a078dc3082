//! Adversarial examples that survive being saved as 8-bit images.

use gauntlet::protocol::*;
use tch::Tensor;

use crate::support::*;

fn eight_bit(mut conditions: Vec<Condition>) -> Vec<Condition> {
    for condition in &mut conditions {
        if let ConditionKind::Attack(attack) = &mut condition.kind {
            attack.eight_bit = true;
        }
    }
    conditions
}

#[test]
fn witnesses_are_8_bit_images_inside_their_budget() {
    let model = convnet(3);
    let images = images(&model, 20, 0);
    for (norm, radius) in [(Norm::Linf, 0.07), (Norm::L2, 0.6), (Norm::L1, 3.0)] {
        for attack in autoattacks(20, 100, 1, 1) {
            let conditions = eight_bit(conditions(norm, &[radius], true, &attack));
            let outcomes = crate::support::attack(&model, &images, &conditions);
            let broken: Vec<_> = outcomes.iter().filter(|outcome| !outcome.verdict.robust).collect();
            assert!(!broken.is_empty(), "{} breaks nothing in {norm}", attack.name());
            for outcome in broken {
                let witness = outcome.witness.as_ref().unwrap();
                assert!(witness.iter().all(|pixel| *pixel == (pixel * 255.0).round() / 255.0));
                let Verdict { l1, l2, linf, .. } = outcome.verdict;
                assert!(norm.of(l1, l2, linf) <= radius * (1.0 + 1e-6), "{norm}: {l1} {l2} {linf}");
            }
            // What the search takes for a success is the image that is examined.
            assert!(outcomes.iter().all(|outcome| outcome.notes.unconfirmed == 0), "{}", attack.name());
        }
    }
}

#[test]
fn on_a_linear_model_the_grid_costs_exactly_what_it_must() {
    let weights = uniform(&[2, 64], -1.0, 1.0, 9);
    let logits = move |images: &Tensor| images.flatten(1, -1).linear(&weights, None::<&Tensor>);
    let model = Model { spec: spec([1, 8, 8], 2), logits };
    let images = images(&model, 400, 0);
    let attack = Attack::Pgd(Pgd { steps: 30, ..pgd() });
    let standing = |radius: f64, snapped: bool| {
        let plain = conditions(Norm::Linf, &[radius], true, &attack);
        let outcomes = crate::support::attack(&model, &images, &if snapped { eight_bit(plain) } else { plain });
        outcomes.iter().filter(|outcome| outcome.verdict.robust).count()
    };
    // The best perturbation is a corner of ball and box, which is an 8-bit image if ε is a multiple of 1/255.
    let whole = 3.0 / 255.0;
    assert_eq!(standing(whole, true), standing(whole, false));
    assert!((1..400).contains(&standing(whole, true)));
    // What is left of a multiple buys nothing on the grid, and less than a whole level buys nothing at all.
    assert_eq!(standing(3.9 / 255.0, true), standing(whole, true));
    assert!(standing(3.9 / 255.0, false) < standing(whole, false));
    assert_eq!(standing(0.9 / 255.0, true), 400);
}
