"""Numbers that compare restored images with the ground truth."""

# Which way is better, as papers print it; a metric not named here is shown without a mark.
DIRECTION = {
    "psnr_rgb": "↑",
    "ssim_rgb": "↑",
    "st_lpips_vgg": "↓",
    "st_lpips_alex": "↓",
    "deg": "↓",
    "deg_vqfr": "↓",
    "ida_rad": "↓",
    "lmd": "↓",
    "lmd_68": "↓",
    "identity_distance_dlib": "↓",
} | {f"identity_cos_{network}": "↑" for network in ("mini", "irse50", "clip", "sface", "insightface", "adaface")}
