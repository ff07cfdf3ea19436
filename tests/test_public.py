"""The public names and how they are called: whoever changes a line here changes what others' programs rely on."""

import inspect

import objcrop
from objcrop.dali_pipes.loading import ViewOptions
from objcrop.option import options_of

SIGNATURES = {
    "Augment": "brightness contrast saturation hue jitter_p grey_p blur_p solarise_p flip_p "
    "sigma interpolation mean std",
    "CropPolicy": "name views per_box small_box_rule heads_shared",
    "ViewSpec": "role region scale whole size aspect augment local",
    "ViewBoxes": "corners sample box visible",
    "ViewPlan": "sample row box regions windows flip jitter factors order grey sigma solarise",
    "Views": "views index requested labels plan substituted boxes",
    "export": "checkpoint output format",
    "headroom": "loader say",
    "index": "source format *limit *verify *strict **options",
    "join_catalogs": "catalogs",
    "load_views": " ".join(
        ["catalog", "*boxes", "*bad_images", "*rank", "*world_size", *(f"*{name}" for name in options_of(ViewOptions))]
    ),
    "pretrain": "recipe catalog boxes output *resume **options",
    "probe": "checkpoint train test *backend *device *size *single_label *fine_tune "
    "*linear *linear_epochs *linear_lr *linear_batch_size *batch_norm",
    "propose": "catalog method **options",
    "stats": "catalog boxes crops *seed *images *draws *bootstrap **options",
    "subset": "catalog *min_classes *min_images *classes_of",
    "transfer": "checkpoint task train test output *preset *resume **options",
}
OPTIONS = (
    "crops size augment local_views local_size local_scale local_from local_overlap random_crop scale scale_min "
    "min_side dilate dilate_by shift max_boxes backend device batch_size seed workers threads prefetch decode "
    "decode_scaled hw_decoder_load decoder_padding colour cache cache_side disk_cache "
    "disk_cache_gb max_bad shuffle drop_last dtype view_boxes"
)


def test_signatures():
    marks = {inspect.Parameter.KEYWORD_ONLY: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    for name, expected in SIGNATURES.items():
        parameters = inspect.signature(getattr(objcrop, name)).parameters.values()
        assert " ".join(marks.get(p.kind, "") + p.name for p in parameters) == expected, name
    assert " ".join(options_of(ViewOptions)) == OPTIONS


def test_every_public_name_is_there_and_documented():
    assert sorted(objcrop.__all__, key=str.lower) == sorted(set(objcrop.__all__), key=str.lower)
    classes = {"BoxTable", "Catalog", "ObjcropError", "Recipe", "UsageError"}
    assert set(objcrop.__all__) == set(SIGNATURES) | classes
    for name in objcrop.__all__:
        assert inspect.getdoc(getattr(objcrop, name)), name
