//! Any image, any corruption: no panic, the same shape, the same bytes every time.

use gauntlet::robustness::corruption::{
    Channels, Corruption, FrostTextures, Image, Keyed, NumpyCompat, Recipe, Severity, Shape, Table, prefetched,
};
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
enum Content {
    Zero,
    Constant(u8),
    Random(u64),
    /// Equal channels.
    Colourless(u64),
}

fn image(shape: Shape, content: Content) -> Image {
    let channels = shape.channels();
    let noise = |seed: u64, i: usize| ((seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8;
    let value = |i: usize| match content {
        Content::Zero => 0,
        Content::Constant(v) => v,
        Content::Random(seed) => noise(seed, i),
        Content::Colourless(seed) => noise(seed, i / channels),
    };
    Image::new(shape, (0..shape.pixels() * channels).map(value).collect()).unwrap()
}

fn contents() -> impl Strategy<Value = Content> {
    prop_oneof![
        Just(Content::Zero),
        any::<u8>().prop_map(Content::Constant),
        any::<u64>().prop_map(Content::Random),
        any::<u64>().prop_map(Content::Colourless),
    ]
}

fn sides() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..=40, 30usize..=130]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_small_image_can_be_corrupted_and_gives_the_same_bytes_again(
        height in sides(),
        width in sides(),
        channels in prop_oneof![Just(Channels::Grey), Just(Channels::Rgb)],
        content in contents(),
        kind in 0..19usize,
        severity in 0..5usize,
        table in 0..4usize,
        saved in any::<bool>(),
        seed in any::<u32>(),
    ) {
        let shape = Shape { height, width, channels };
        let image = image(shape, content);
        let recipe = Recipe {
            corruption: Corruption::ALL[kind],
            severity: Severity::ALL[severity],
            table: Table::ALL[table],
            saved,
        };
        let textures = FrostTextures::procedural();
        let once = recipe.apply(&image, &textures, &mut Keyed::new(seed.into(), 1, 2));
        let again = recipe.apply(&image, &textures, &mut Keyed::new(seed.into(), 1, 2));
        prop_assert_eq!(once.shape(), shape);
        prop_assert_eq!(&once, &again);
        let compatible = recipe.apply(&image, &textures, &mut NumpyCompat::new(seed));
        prop_assert_eq!(compatible.shape(), shape);
        if !recipe.corruption.is_random() {
            prop_assert_eq!(once, compatible);
        }
    }
}

/// Every type at sides up to 1024, with severities, tables, contents and channels varied.
fn large_jobs() -> Vec<(Recipe, Shape, Content)> {
    let sides = [(1024, 1024), (1, 1024), (1024, 1), (1023, 33), (500, 131), (2, 700)];
    let job = |(i, (corruption, (height, width)))| {
        let recipe = Recipe {
            corruption,
            severity: Severity::ALL[(i + i / 5) % 5],
            table: Table::ALL[i / 6 % 4],
            saved: i % 4 == 1,
        };
        let channels = if i % 3 == 2 { Channels::Grey } else { Channels::Rgb };
        let content = match i / 2 % 4 {
            0 => Content::Random(i as u64),
            1 => Content::Zero,
            2 => Content::Colourless(i as u64),
            _ => Content::Constant((i * 37 % 256) as u8),
        };
        (recipe, Shape { height, width, channels }, content)
    };
    let cells = Corruption::ALL.into_iter().flat_map(|corruption| sides.map(|sides| (corruption, sides)));
    cells.enumerate().map(job).collect()
}

#[test]
fn large_and_uneven_images_give_the_same_bytes_on_one_thread_and_on_many() {
    let textures = FrostTextures::procedural();
    let jobs = large_jobs();
    let run = |&(recipe, shape, content): &(Recipe, Shape, Content)| {
        let corrupted = recipe.apply(&image(shape, content), &textures, &mut Keyed::new(3, 1, 4));
        assert_eq!(corrupted.shape(), shape);
        corrupted.into_bytes()
    };
    let alone: Vec<Vec<u8>> = jobs.iter().map(run).collect();
    for threads in [2, 8] {
        let make = |item: usize| run(&jobs[item]);
        prefetched(jobs.len(), threads, 16, make, |together| {
            for (job, alone) in jobs.iter().zip(&alone) {
                assert!(together.take() == *alone, "{job:?} with {threads} threads");
            }
        });
    }
}

#[test]
fn a_grey_image_is_corrupted_like_its_colour_twin_where_channels_do_not_mix() {
    let shape = Shape { height: 48, width: 64, channels: Channels::Grey };
    let grey = image(shape, Content::Random(11));
    let rgb = Shape { channels: Channels::Rgb, ..shape };
    let twin = Image::new(rgb, grey.bytes().iter().flat_map(|&v| [v; 3]).collect()).unwrap();
    let textures = FrostTextures::procedural();
    for corruption in Corruption::ALL {
        use Corruption::*;
        // Noise draws once a channel, and a JPEG file of a grey image has no chroma; frost, spatter and saturate end in luma.
        if matches!(corruption, GaussianNoise | ShotNoise | ImpulseNoise | SpeckleNoise | Frost | Spatter | Saturate) {
            continue;
        }
        let recipe = Recipe { corruption, severity: Severity::ALL[2], table: Table::Px224, saved: false };
        let one = recipe.apply(&grey, &textures, &mut Keyed::new(1, 1, 1)).into_bytes();
        let three = recipe.apply(&twin, &textures, &mut Keyed::new(1, 1, 1)).into_bytes();
        let channel: Vec<u8> = three.iter().step_by(3).copied().collect();
        let apart = one.iter().zip(&channel).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // The grey of three equal singles may round by one place.
        assert!(apart <= u8::from(corruption == Snow), "{corruption:?}: {apart} levels");
    }
}
